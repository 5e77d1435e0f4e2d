"""What a stored result says of its run, made up."""

FACTS = {
    "cores_used": 1,
    "cores_present": 2,
    "processor": "p",
    "threads": 1,
    "load_average": 0.0,
    "time": "t",
    "python": "3",
    "versions": {},
    "commit": "",
    "changed_files": 0,
    "seed": 0,
}
