"""The command line: arguments in, calls out.  Nothing else prints.

`main` holds the group and the commands of a run; every other command has a file of its own.
"""
