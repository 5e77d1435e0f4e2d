"""Which law describes the measurements: ranking by held-out error, information criteria, nested hypotheses."""
