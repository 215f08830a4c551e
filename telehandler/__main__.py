"""`python -m telehandler`."""

from telehandler.cli import main

if __name__ == "__main__":
    main()
