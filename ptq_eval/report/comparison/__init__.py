"""The comparison of laws, as a section of the report and a figure."""
