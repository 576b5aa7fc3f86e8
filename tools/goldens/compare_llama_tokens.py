"""Compares Hugging Face's tokenizers with llama.cpp's on real vocabularies, and writes the former's ids for our tests.

    python tools/goldens/compare_llama_tokens.py FOLDER [--examples 3]

FOLDER has ggml-vocab-*.gguf (fetch_model_files.py puts them there). For each whose family is in our table, the tokenizer that
the model's own tokenizer.json describes is built from the file (tokenizer_goldens.py) and checked against the ids that
llama.cpp's authors got from the original (.inp, .out); then its ids over our corpus are compared with llama.cpp's. The differences
are printed (docs/tokenizers.md explains them) and FOLDER/ids.json is written.
Needs tokenizers, gguf and llama-cpp-python; without the last it writes ids.json and compares nothing.
"""

import argparse
import json
import pathlib

import gguf
import tokenizer_goldens as goldens

SEPARATOR = "\n__ggml_vocab_test__\n"


def metadata(path):
    fields = gguf.GGUFReader(path).fields
    return {key.removeprefix("tokenizer.ggml."): field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}


def reference(meta):
    """The tokenizer, or None where the family is not in our table."""
    tokens, kinds = meta["tokens"], [int(kind) for kind in meta["token_type"]]
    # What we, too, take for control tokens.
    if meta["model"] == "gpt2" and meta.get("pre") in goldens.PRE:
        return goldens.build(tokens, kinds, meta["merges"], meta["pre"], True)
    if meta["model"] == "gemma4":
        merges = [(merge[:cut], merge[cut + 1:]) for merge in meta["merges"] for cut in [merge.index(" ", 1)]]
        return goldens.build_characters(tokens, kinds, merges, None, False, True)
    if meta["model"] == "llama":
        scores = dict(zip(tokens, meta["scores"]))
        return goldens.build_characters(tokens, kinds, None, scores, meta.get("add_space_prefix", True), True)
    return None


def known_good(path):
    """Texts and the ids that the model's own tokenizer gave for them."""
    texts, rows = path.with_suffix(".gguf.inp"), path.with_suffix(".gguf.out")
    if not texts.exists() or not rows.exists():
        return []
    texts = texts.read_bytes().decode().split(SEPARATOR)
    rows = [[int(number) for number in line.split()] for line in rows.read_text().split("\n")]
    return list(zip(texts, rows))


def show(meta, ids, other):
    """The part of `ids` in which it is not `other`, as tokens."""
    first = next((i for i, pair in enumerate(zip(ids, other)) if pair[0] != pair[1]), min(len(ids), len(other)))
    return " ".join(repr(meta["tokens"][i]) for i in ids[max(first - 1, 0):first + 6])


def load_llama(path):
    try:
        import llama_cpp
    except ImportError:
        return None
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


def end_tokens(llama, count):
    import llama_cpp
    vocab = llama_cpp.llama_model_get_vocab(llama._model.model)
    return [i for i in range(count) if llama_cpp.llama_vocab_is_eog(vocab, i)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--examples", type=int, default=3)
    arguments = parser.parse_args()
    corpus, result = goldens.nasty(), {}
    for path in sorted(arguments.folder.glob("ggml-vocab-*.gguf")):
        meta = metadata(path)
        label = f"{path.name}: {meta['model']}/{meta.get('pre', '-')}"
        tokenizer = reference(meta) if meta.get("tokens") else None
        if tokenizer is None:
            print(f"{label}: not in our table")
            continue
        good = known_good(path)
        wrong = [(text, ids) for text, ids in good if tokenizer.encode(text, add_special_tokens=False).ids != ids]
        print(f"{label}: {len(good) - len(wrong)} of {len(good)} texts as with the original")
        for text, ids in wrong[:arguments.examples]:
            ours = tokenizer.encode(text, add_special_tokens=False).ids
            print(f"    NOT AS THE ORIGINAL {text!r}\n        original {show(meta, ids, ours)}\n        here     {show(meta, ours, ids)}")
        texts = corpus + [text for text, _ in good]
        rows = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        result[path.name] = {"extra": texts[len(corpus):], "ids": rows}
        llama = load_llama(path)
        if llama is None:
            continue
        result[path.name]["llama_end"] = end_tokens(llama, len(meta["tokens"]))
        theirs = [llama.tokenize(text.encode(), add_bos=False, special=True) for text in texts]
        different = [(text, row, other) for text, row, other in zip(texts, rows, theirs) if row != other]
        print(f"    llama.cpp: {len(texts) - len(different)} of {len(texts)} texts the same")
        for text, row, other in different[:arguments.examples]:
            print(f"    {text[:60]!r}\n        reference {show(meta, row, other)}\n        llama.cpp {show(meta, other, row)}")
    out = arguments.folder / "ids.json"
    out.write_text(json.dumps({"corpus": corpus, "vocabularies": result}) + "\n")
    print(out)


if __name__ == "__main__":
    main()
