"""``python -m nasrec_torchrec`` is ``nasrec``: for launchers that start a module."""

from nasrec_torchrec.cli.main import main

if __name__ == "__main__":
    main()
