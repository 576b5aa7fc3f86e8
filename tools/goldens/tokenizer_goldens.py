"""Golden numbers for the tokenizers of crates/text, made by Hugging Face's own code.

Trains a small byte-level BPE on the text below and encodes a nasty corpus with it under each pre-tokenizer of our table; then
a BPE on characters, encoded as Gemma 4's tokenizer does and, with scores, as transformers does for sentencepiece models.
Everything is determined by the constants here.

    python tools/goldens/tokenizer_goldens.py        # writes tests/fixtures/tokenizer/{bpe,characters}.json

Needs tokenizers 0.23; where tiktoken is installed, too, the families that come from it are compared with it. The expressions are spelled out a second time on purpose: a slip in the Rust table shows up as a
difference. compare_llama_tokens.py uses this file for real vocabularies.
"""

import collections
import json
import pathlib
import random

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests" / "fixtures" / "tokenizer"

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def words(digits):
    return CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL


def cased(limit):
    def lead(inner):
        return rf"[^\r\n\p{{L}}\p{{N}}]?{inner}{CONTRACTIONS}?"
    upper, lower = f"[{UPPER}{limit}]", f"[{LOWER}{limit}]"
    return lead(f"{upper}*{lower}+") + "|" + lead(f"{upper}+{lower}*")


# name -> (expressions, ignore_merges, nfc)
PRE = {
    "glm4": ([words(r"\p{N}{1,3}")], True, False),
    "glm5": ([words(r"\p{N}{1,3}")], True, False),
    "chatglm-bpe": ([words(r"\p{N}{1,3}")], False, False),
    "llama-bpe": ([words(r"\p{N}{1,3}")], True, False),
    "qwen2": ([words(r"\p{N}")], False, True),
    "qwen35": (
        [
            CONTRACTIONS
            + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
            + TAIL
        ],
        False,
        True,
    ),
    "gpt-2": (
        [r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"],
        False,
        False,
    ),
    "deepseek-v3": (
        [
            r"\p{N}{1,3}",
            r"[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            + r"| ?[\p{P}\p{S}]+[\r\n]*"
            + TAIL,
        ],
        False,
        False,
    ),
    # In the models' own files the last step of these two is Digits(individual_digits=True); `splitter` does the same.
    "deepseek-llm": (
        [
            r"[\r\n]",
            r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴ"
            + r"ᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏"
            + r"𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            r"[一-龥ࠀ-一가-퟿]+",
            "digits",
        ],
        False,
        False,
    ),
    "deepseek-coder": ([r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", "digits"], False, False),
    "gpt-4o": ([cased("") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + TAIL], False, False),
    "minimax-m2": ([cased("") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + TAIL], False, False),
    "kimi-k2": (
        [r"[\p{Han}]+|" + cased(r"&&[^\p{Han}]") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL],
        False,
        False,
    ),
}

CONTROL = ["[gMASK]", "<sop>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
           "<|user|>!", "ordinary"]
USER_DEFINED = ["<think>", "</think>", "<tool_call>", "\t\t\t"]
# Reachable only by ignore_merges: no merge makes them.
WHOLE = ["Ġbookbinder", "quokka", "123", "!?!"]

TRAINING = """
The lighthouse keeper counted the ships that passed below the cliff, and wrote each name into a ledger. The ledger's
pages weren't numbered; he'd numbered the ships instead. They're all gone now. I've read it, we'll keep it, I'm told.
In the harbour there were seven boats, twelve nets and one very old dog who slept through every storm of the winter.
Der Leuchtturmwärter zählte die Schiffe, die unter der Klippe vorbeifuhren, und schrieb jeden Namen in ein Buch.
Le gardien du phare comptait les navires qui passaient sous la falaise et écrivait chaque nom dans un grand registre.
Смотритель маяка считал корабли и записывал имя каждого корабля в книгу. Кораблей было много, а книга была одна.
灯塔看守人数着从悬崖下经过的船只，把每个名字写进账本。港口里有七条船，十二张网，还有一只老狗。
灯台守は崖の下を通る船を数えて、それぞれの名前を帳簿に書いた。港には七隻の船と十二枚の網があった。
كان حارس المنارة يعد السفن التي تمر تحت الجرف ويكتب كل اسم في دفتر كبير. नाविक ने जहाज़ों को गिना और किताब में लिखा।
fn main() { let mut total = 0u64; for ship in ships.iter() { total += ship.length; } println!("{total}"); }
def count(ships): return sum(1 for ship in ships if ship["length"] > 12.5)  # only the long ones
{"name": "ledger", "pages": [1, 2, 3], "open": true, "price": 19.99, "year": 1887}
    indented by four      and then some     spaces	with tabs		and	more
ship ships shipping shipped shipper; count counts counting counted counter; keep keeper keeping kept; 1887 1888 1890
"""

CORPUS = [
    "",
    " ",
    "  ",
    "\n",
    "\r\n",
    " \n ",
    "a",
    " a",
    "a ",
    "Hello, world!",
    "The keeper's ledger wasn't lost; they'd've told us. I'M SURE WE'LL SEE. 'Tis it'S",
    "it'\u017f x'\u017f don'T you'RE 'll'll '' 's",
    "1 12 123 1234 12345 1234567890 3.14159 1,000,000 ½ ² Ⅷ ٣٤٥ १२३ 一二三 12ab34 v2.0.1",
    "line one\nline two\r\nline three\n\n\nline six\n  \n\tindented\n",
    "trailing spaces   \n   leading spaces\n \t mixed \t\n",
    "a  b   c    d     e\t\tf\t \tg",
    "wide\u00a0no-break\u2003em\u3000ideographic\u0085next\u2028line\u2029para\u200bzero\ufeffbom\u180evowel",
    "\u3000\u3000two ideographic spaces\u3000\u3000\u3000",
    "foo.bar(baz)[0]->qux::<T>() != nullptr && x /= y // comment\n/* block */\n",
    "#!/usr/bin/env python\nif __name__ == '__main__':\n    print(f\"{x!r:>10}\")\n",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\dir\\file.txt /etc/hosts\n/\n//\n",
    "HelloWorld helloWorld HTTPServer iPhone McDonald's ǅungla ǅUNGLA ABCdef ABC'S abc's",
    "naïve café Ångström ﬁne ﬅop Straße ẞ İstanbul ıI",
    "e\u0301a\u0308 cafe\u0301 \u0301start \u0301\u0301 a\u0301\u0302b n\u0303o",
    "가나다 각 \u1100\u1161\u11a8 한국어 텍스트",
    "中文字符，混合English和123数字。日本語のテキスト、カタカナとひらがな。漢字かな交じり",
    "中a文b 中1文2 A中文 中文's 龥龦鿿㐀𠀀々〇ー",
    "العربية نص عربي مع تشكيل مُحَمَّد 12٣",
    "नमस्ते दुनिया क्षत्रिय हिन्दी",
    "ไทยไม่มีช่องว่าง ខ្មែរ မြန်မာ",
    "😀 😃😄 👨‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 ❤️ ☃ ✈️",
    "∀x∈ℝ: ∑ᵢ xᵢ² ≥ 0 ⇒ √2 ≠ ½ ± ∞ €5 £3 ¥100 $7",
    "\u0000\u0001\u001f\u007f\u0080 control \u001b[0m",
    "\ufffd \ufdd0 \ufffe \U0010ffff \ue000 private",
    "!!! ... --- ___ === ??? ;;; '''\"\"\"```~~~ !?! ,,,,\n\n...\r\n!!\n",
    "(a)(b) [c] {d} <e> \"f\" 'g' `h` _i_ *j* -k +l =m @n #o $p %q ^r &s ~t |u \\v /w ?x !y ,z ;A :B .C",
    "bookbinder bookbinder quokka quokkas 123 1230 !?! !?!?",
    "[gMASK]<sop><|system|>Reasoning Effort: Max<|user|>hi<|assistant|><think>hm</think>ho<|observation|>",
    "text<|user|>text <|user|> text <|user|>! <|user|>? <|user <|user| |user|> <|user|><|user|>",
    "<|endoftext|> an ordinary extraordinary ordinaryordinary ordinar",
    "<think>\n\n</think>\n\n<tool_call>name\t\t\tx\t\t\t\t<tool_cal",
    "e\u0301<|user|>e\u0301 <think>\u1100\u1161</think>\u1100\u1161",
    "a" * 300,
    " " * 70 + "x" + " " * 70,
    "\n" * 40 + " \n" * 20 + "end",
    "ship" * 40 + "é" * 40 + "船" * 40,
    "a\u0300\u0301b ﷺ שָׁלוֹם বাংলা ক্ষ ಕನ್ನಡ தமிழ் བོད་ཡིག ꦗꦮ",
    "𝐀𝟏𝒃 𐐀𐐨 ＡＢｃ１２３！？ Ⴀⴀ Ჿ Ꭰꭰ ἈΑᾳ ϴ Ⅳ⑳㊿ ꯱꯲ ೧೨ 𑣠𑢠 𞤀",
    "\u2029 \ua3e4 \u1680\u202f\u205f x\u000by\u000cz \u001c\u001d",
    "▁ literal ▁▁ low▁line <0x41><0xE7> <0xe7> </s> <s> <unk> <pad>",
    "| a | b |\n|---|--:|\n| 1 | 2 |\n\n- [ ] x\n  1. y\n> z\n```py\nx = [i**2 for i in range(10)]\n```\n",
    '<a href="x&amp;y">&lt;b&gt;</a> {"k": [1, -2.5e-3, null], "é": "\\u00e9\\n"}\r\n\r\n\t}',
    "<|im_start|>user\n<|im_end|><|channel|>analysis<|message|><｜User｜><｜tool▁calls▁begin｜>]~b]ai<|\"|>[INST] <start_of_turn>",
    "!a #b $C 'd .E /f ~g !1 ! a \t!x\n!y ?!z …a «q» “r” 、s。t",
    " 1 a1 1a 1,234.5 12345678901234567890 -1 +2 1e10 0x1F ٠١٢٣٤٥ 1٢3４ ½¾ ²³",
    "x\n\ny\n \nz\n\t\n\n  w \r\r\n v\n\n\n\n\n\nu \n",
    "\n\n\nhello\n\n \n\n",
    "ĠĊ Ā ġ\u0120\u010a the GPT-2 alphabet itself",
    "漢字かなカナｶﾅㄅㄆ한글ㄱㄴ〆〻豈更ﾃｽﾄ々〇〥㍿",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f \u202eright to left\u202c",
]

ALPHABET = (
    "  \n\t\r'ASTDMaestdlrvm019.,!?/-_<|>éß中文あ가😀\u0301\u00a0\u3000\u2028"
    + "ΑαЖжÀǅʰªªـא١२Ⅷ½€+^`"
)


def nasty():
    rng = random.Random(20260101)
    strings = list(CORPUS)
    for length in [3, 5, 8, 13, 21, 34, 55] * 8:
        strings.append("".join(rng.choice(ALPHABET) for _ in range(length)))
    return strings


def train():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter(PRE["glm4"][0])
    trainer = trainers.BpeTrainer(
        vocab_size=1100, min_frequency=1, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([TRAINING], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    crossing = merges_across_boundaries(tokens, model["merges"])
    tokens += ["".join(pair) for pair in crossing]
    merges = [" ".join(pair) for pair in model["merges"] + crossing]
    types = [1] * len(tokens)
    for token in WHOLE:
        assert token not in tokens, token
        tokens.append(token)
        types.append(1)
    # In the middle of the table on purpose: ids must not be handed out anew.
    for texts, kind in [(CONTROL, 3), (USER_DEFINED, 4), (["[PAD]", "[PAD]"], 5), (["Ġafterwards"], 1)]:
        tokens += texts
        types += [kind] * len(texts)
    return tokens, types, merges


def merges_across_boundaries(tokens, merges):
    """A merge for each place of the corpus that some families cut and some do not: whoever cuts wrongly gets other ids."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    machine = models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(pair) for pair in merges])
    base = Tokenizer(machine)
    base.pre_tokenizer = byte_level
    families = [pre_tokenizers.Sequence(splits(expressions)) for expressions, *_ in PRE.values()]
    found, known = [], set(tokens) | set(WHOLE)
    for text in nasty():
        cuts = [{start for _, (start, _) in family.pre_tokenize_str(text)} for family in families]
        every = sorted(set().union(*cuts))
        pieces = [text[start:end] for start, end in zip(every, every[1:] + [len(text)])]
        words = [base.encode(piece, add_special_tokens=False).tokens for piece in pieces]
        for at, left, right in zip(every[1:], words, words[1:]):
            pair = [left[-1], right[0]]
            if any(at not in cut for cut in cuts) and "".join(pair) not in known:
                known.add("".join(pair))
                found.append(pair)
    return found


def splits(expressions):
    return [
        pre_tokenizers.Digits(individual_digits=True) if e == "digits" else pre_tokenizers.Split(Regex(e), "isolated")
        for e in expressions
    ]


def splitter(expressions):
    return pre_tokenizers.Sequence(splits(expressions) + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def build(tokens, types, merges, name, with_control):
    """A byte-level tokenizer as the model's own tokenizer.json would describe it. Kinds are those of GGUF."""
    expressions, ignore_merges, nfc = PRE[name]
    keep = {1, 2, 3, 4} if with_control else {1, 4}
    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, types)) if kind in keep}
    pairs = [(merge[:cut], merge[cut + 1:]) for merge in merges for cut in [merge.index(" ", 1)]]
    tokenizer = Tokenizer(models.BPE(vocab, pairs, ignore_merges=ignore_merges))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitter(expressions)
    tokenizer.decoder = decoders.ByteLevel()
    add_special(tokenizer, tokens, types, with_control)
    return tokenizer


def add_special(tokenizer, tokens, types, with_control):
    control = [token for token, kind in zip(tokens, types) if kind in {2, 3} and token]
    if with_control:
        tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    defined = [token for token, kind in zip(tokens, types) if kind == 4 and token]
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in defined])


def tokenizer_goldens():
    tokens, types, merges = train()
    corpus = nasty()
    goldens = {}
    for name in PRE:
        parse = build(tokens, types, merges, name, True)
        plain = build(tokens, types, merges, name, False)
        ids = [parse.encode(text, add_special_tokens=False).ids for text in corpus]
        # Only where it differs: most of the corpus has no control tokens.
        other = {
            str(i): plain.encode(text, add_special_tokens=False).ids
            for i, text in enumerate(corpus)
        }
        other = {i: row for i, row in other.items() if row != ids[int(i)]}
        goldens[name] = {"parse": ids, "plain_differs": other}
    return {
        "origin": f"tools/goldens/tokenizer_goldens.py, tokenizers {tokenizers.__version__}",
        "tokens": tokens, "token_types": types, "merges": merges, "corpus": corpus, "goldens": goldens,
    }


def check_with_tiktoken(golden):
    """Kimi's and OpenAI's tokenizers are tiktoken's: with the same words and ranks it has to give the same ids."""
    try:
        import tiktoken
    except ImportError:
        print("tiktoken is not installed; kimi-k2 and gpt-4o were compared with nothing")
        return
    byte_of = {char: byte for byte, char in enumerate_alphabet()}
    # tiktoken takes a whole word that is a token, so tokens that no merge leads to must not be there.
    merged = {merge.replace(" ", "") for merge in golden["merges"]}
    learnt = [token for token in golden["tokens"] if len(token) == 1 or token in merged]
    ids = {token: i for i, token in enumerate(golden["tokens"])}
    ranks = {bytes(byte_of[char] for char in token): ids[token] for token in learnt}
    specials = CONTROL + USER_DEFINED
    for name in ["kimi-k2", "gpt-4o", "minimax-m2"]:
        (expression,), *_ = PRE[name]
        encoding = tiktoken.Encoding(name, pat_str=expression, mergeable_ranks=ranks, special_tokens={})
        count = 0
        for text, row in zip(golden["corpus"], golden["goldens"][name]["parse"]):
            if any(token in text for token in specials) or any(golden["tokens"][i] in WHOLE for i in row):
                continue
            assert encoding.encode_ordinary(text) == row, (name, text)
            count += 1
        print(f"{name}: tiktoken {tiktoken.__version__} gives the same ids for {count} texts")


def enumerate_alphabet():
    """The GPT-2 alphabet: (byte, character)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    chars = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
    return sorted(chars.items())


# The table of the character-level vocabularies: kinds are those of GGUF (2 unknown, 3 control, 4 user-defined, 6 byte).
HEAD = [("<pad>", 3), ("<eos>", 3), ("<bos>", 3), ("<unk>", 2), ("<|turn>", 3), ("<turn|>", 3), ("<|tool_call>", 4)]
RUNS = ["\n\n", "\n\n\n", "\n\n\n\n", "<table>"]


def train_characters():
    """Tokens, kinds and merges; merged tokens are in the order in which they were learnt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # Words, as sentencepiece learns them: the space belongs to the word that follows.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁\n]*|[^▁\n]+|\n"), "isolated")
    # The most frequent characters, chosen here: the trainer chooses among equals by chance.
    counts = collections.Counter(TRAINING.replace(" ", "▁"))
    alphabet = sorted(counts, key=lambda char: (-counts[char], char))[:150]
    trainer = trainers.BpeTrainer(
        vocab_size=900, min_frequency=1, show_progress=False, limit_alphabet=len(alphabet),
        initial_alphabet=sorted(alphabet),
    )
    tokenizer.train_from_iterator([TRAINING], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    learnt = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    tokens = [token for token, _ in HEAD] + [f"<0x{byte:02X}>" for byte in range(256)] + RUNS
    kinds = [kind for _, kind in HEAD] + [6] * 256 + [4] * len(RUNS)
    merges = [tuple(pair) for pair in model["merges"]]
    # Runs of spaces and of newlines, which the text above has too few of.
    for pair in [("▁", "▁"), ("▁▁", "▁▁"), ("▁▁", "▁")]:
        if "".join(pair) not in learnt:
            learnt.append("".join(pair))
            merges.append(pair)
    tokens += learnt
    kinds += [1] * len(learnt)
    return tokens, kinds, merges


def merges_from_scores(ids, scores):
    """As transformers' converter for sentencepiece makes them: every pair of pieces that is a piece, best scores first."""
    found = []
    for piece in ids:
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        pairs = [(left, right) for left, right in pairs if left in ids and right in ids]
        found += [(scores[piece], ids[left], ids[right], left, right) for left, right in pairs]
    found.sort(key=lambda row: (-row[0], row[1], row[2]))
    return [(left, right) for *_, left, right in found]


def build_characters(tokens, kinds, merges, scores, prefix, with_control):
    """Gemma 4's tokenizer, or with scores that of a sentencepiece model (`legacy`: a space in front of each stretch)."""
    ids = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds)) if kind in {1, 2, 4, 6} or with_control}
    if scores is not None:
        pieces = {token: i for token, i in ids.items() if kinds[i] in {1, 4}}
        merges = merges_from_scores(pieces, scores)
    unk = next((token for token, kind in zip(tokens, kinds) if kind == 2), None)
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
    steps = ([normalizers.Prepend("▁")] if prefix else []) + [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    if scores is None:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    add_special(tokenizer, tokens, kinds, with_control)
    return tokenizer


def character_goldens():
    tokens, kinds, merges = train_characters()
    # Markup that a file has as user-defined is out of a user's reach with us.
    steering = [3 if token == "<|tool_call>" else kind for token, kind in zip(tokens, kinds)]
    # Sentencepiece: the earlier a piece was learnt, the better. Exact in binary, so that files hold them exactly.
    scores = {token: -0.25 * i for i, token in enumerate(tokens)}
    corpus = nasty() + ["<bos><|turn>user\nhi<turn|>\n<|tool_call>call:f{}", "a <unk> b<unk>", "<table> <table", " \n\n\n\n\n x"]
    goldens = {}
    for name, prefix in [("gemma4", False), ("llama", True), ("llama, no prefix", False)]:
        used = None if name == "gemma4" else scores
        parse = build_characters(tokens, steering, merges, used, prefix, True)
        plain = build_characters(tokens, steering, merges, used, prefix, False)
        ids = [parse.encode(text, add_special_tokens=False).ids for text in corpus]
        other = {str(i): plain.encode(text, add_special_tokens=False).ids for i, text in enumerate(corpus)}
        goldens[name] = {"parse": ids, "plain_differs": {i: row for i, row in other.items() if row != ids[int(i)]}}
    return {
        "origin": f"tools/goldens/tokenizer_goldens.py, tokenizers {tokenizers.__version__}",
        "tokens": tokens, "token_types": kinds, "merges": [" ".join(pair) for pair in merges],
        "scores": [scores[token] for token in tokens], "corpus": corpus, "goldens": goldens,
    }


def write(name, value):
    OUT.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    (OUT / name).write_text(text + "\n")
    print(f"{name}: {len(text)} bytes")


if __name__ == "__main__":
    golden = tokenizer_goldens()
    check_with_tiktoken(golden)
    write("bpe.json", golden)
    write("characters.json", character_goldens())
