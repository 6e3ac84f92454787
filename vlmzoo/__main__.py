"""``python -m vlmzoo``."""

from vlmzoo.cli import main

if __name__ == "__main__":
    main()
