"""A comparison of two results for people and machines: console, Markdown, JUnit, github-action-benchmark, JSON."""
