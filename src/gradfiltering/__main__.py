"""`python -m gradfiltering`: the same as the command `gradfiltering`."""

from gradfiltering.cli import main

if __name__ == "__main__":
    main()
