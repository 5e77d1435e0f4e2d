"""`report.html`: the report as one file for a browser, with figures to explore; and the same while a run goes on."""
