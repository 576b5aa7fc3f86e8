"""Compares Hugging Face's tokenizers with llama.cpp's on real vocabularies, and writes the former's ids for our tests.

    python tools/goldens/compare_llama_tokens.py FOLDER [--examples 3]
    python tools/goldens/compare_llama_tokens.py --toy [--examples 3]

FOLDER has ggml-vocab-*.gguf (fetch_model_files.py puts them there). For each whose family is in our table, the tokenizer that
the model's own tokenizer.json describes is built from the file (tokenizer_goldens.py) and checked against the ids that
llama.cpp's authors got from the original (.inp, .out); then its ids over our corpus are compared with llama.cpp's. The differences
are printed (docs/tokenizers.md explains them) and FOLDER/ids.json is written.
Needs tokenizers, gguf and llama-cpp-python; without the last it writes ids.json and compares nothing.

--toy compares the goldens of our own small vocabularies with llama.cpp instead, under each pre-tokenizer that it knows: so the
families for which no vocabulary is at hand are covered, too.
"""

import argparse
import json
import pathlib
import tempfile

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


def write_toy(path, golden, model, pre):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    if pre:
        writer.add_tokenizer_pre(pre)
    # Theirs must be distinct, unused ones, too.
    tokens = [f"{token}{i}" if kind == 5 else token for i, (token, kind) in enumerate(zip(golden["tokens"], golden["token_types"]))]
    writer.add_token_list(tokens)
    writer.add_token_types(golden["token_types"])
    writer.add_token_merges(golden["merges"])
    for name, text in [("bos", "<bos>"), ("eos", "<eos>"), ("unk", "<unk>")]:
        if text in tokens:
            getattr(writer, f"add_{name}_token_id")(tokens.index(text))
    if "bos" not in "".join(tokens):
        writer.add_bos_token_id(tokens.index("[gMASK]"))
        writer.add_eos_token_id(tokens.index("<|endoftext|>"))
    if model == "llama":
        writer.add_token_scores(golden["scores"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare_toys(examples):
    fixtures = {name: json.loads((goldens.OUT / f"{name}.json").read_text()) for name in ["bpe", "characters"]}
    toys = [("bpe", "gpt2", pre, pre) for pre in fixtures["bpe"]["goldens"]]
    toys += [("characters", "gemma4", None, "gemma4"), ("characters", "llama", None, "llama")]
    for fixture, model, pre, name in toys:
        golden = fixtures[fixture]
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "toy.gguf"
            write_toy(path, golden, model, pre)
            try:
                llama = load_llama(path)
            except ValueError as error:
                print(f"{name}: llama.cpp does not load it: {error}")
                continue
            for kind, special in [("parse", True), ("plain", False)]:
                rows = list(golden["goldens"][name]["parse"])
                if not special:
                    for index, row in golden["goldens"][name]["plain_differs"].items():
                        rows[int(index)] = row
                report(golden, golden["corpus"], rows, llama, special, examples, f"{name}, {kind}")


def report(meta, texts, rows, llama, special, examples, label):
    theirs = [llama.tokenize(text.encode(), add_bos=False, special=special) for text in texts]
    different = [(text, row, other) for text, row, other in zip(texts, rows, theirs) if row != other]
    print(f"{label}: llama.cpp has {len(texts) - len(different)} of {len(texts)} texts the same")
    for text, row, other in different[:examples]:
        print(f"    {text[:60]!r}\n        reference {show(meta, row, other)}\n        llama.cpp {show(meta, other, row)}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path, nargs="?")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--examples", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.toy:
        compare_toys(arguments.examples)
        return
    if arguments.folder is None:
        parser.error("a folder, or --toy")
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
        report(meta, texts, rows, llama, True, arguments.examples, "    parse")
    out = arguments.folder / "ids.json"
    out.write_text(json.dumps({"corpus": corpus, "vocabularies": result}) + "\n")
    print(out)


if __name__ == "__main__":
    main()
