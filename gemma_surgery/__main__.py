"""`python -m gemma_surgery`."""

from gemma_surgery.cli import main

if __name__ == "__main__":
    main()
