"""`python -m moejax` is the command line."""

from moejax.cli import main

if __name__ == "__main__":
    main()
