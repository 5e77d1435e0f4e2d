"""`python -m ptq_eval` is `ptq-eval`."""

from ptq_eval.cli.main import main

if __name__ == "__main__":
    main()
