"""Fetches files of published models that tests can use and that are not ours to commit.

    python tools/goldens/fetch_model_files.py FOLDER

Downloads the source package of llama-cpp-python (about 70 MB; nothing is built) with pip, from wherever pip is told to look,
and takes out of it what llama.cpp ships for its own tests: vocabularies (ggml-vocab-*.gguf with their .inp and .out) and chat
templates (*.jinja). Then:

    python tools/goldens/compare_llama_tokens.py FOLDER       # -> FOLDER/ids.json, and how llama.cpp differs
    python tools/goldens/template_goldens.py --real FOLDER    # -> FOLDER/renderings.json
    SLOTBANK_VOCABULARIES=FOLDER cargo test -p slotbank-engine --test vocabularies -- --nocapture
    SLOTBANK_TEMPLATES=FOLDER cargo test -p slotbank-text --test templates
"""

import pathlib
import subprocess
import sys
import tarfile
import tempfile

PACKAGE = "llama-cpp-python==0.3.36"
WANTED = ("vendor/llama.cpp/models/ggml-vocab-", "vendor/llama.cpp/models/templates/")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        # `pip download` would ask the package for its dependencies and so build its metadata; a wheel is never made.
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", temporary, PACKAGE],
            check=True,
        )
        archive = next(pathlib.Path(temporary).glob("*.tar.gz"))
        count = 0
        with tarfile.open(archive) as files:
            for member in files:
                path = member.name.split("/", 1)[-1]
                if not member.isfile() or not path.startswith(WANTED):
                    continue
                # Only the last part of the name is used: an archive cannot write anywhere else.
                (out / pathlib.PurePosixPath(path).name).write_bytes(files.extractfile(member).read())
                count += 1
    print(f"{count} files in {out}")


if __name__ == "__main__":
    main()
