"""`python -m docs.tools [choosing] [performance] [gallery]`: write them again, all when none is named."""

import argparse

from . import choosing, gallery, performance

PARTS = {"choosing": choosing.write, "performance": performance.write, "gallery": gallery.write}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.tools", description="Write what is generated in docs/ again.")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    for name in parser.parse_args().parts or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
