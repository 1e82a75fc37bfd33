"""`python -m engine …`"""

from engine.cli.main import main

if __name__ == "__main__":  # the fork server imports the main module under another name
    raise SystemExit(main())
