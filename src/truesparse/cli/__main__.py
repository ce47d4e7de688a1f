"""`python -m truesparse.cli`, where the command itself is not on the path."""

from .main import main

if __name__ == "__main__":
    main()
