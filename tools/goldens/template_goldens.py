"""Golden renderings of chat templates for crates/text, made by transformers' own Jinja environment.

    python tools/goldens/template_goldens.py                         # writes tests/fixtures/tokenizer/templates.json
    python tools/goldens/template_goldens.py --show TEMPLATE CONVERSATION OPTIONS     # prints one of the matrix
    python tools/goldens/template_goldens.py --real FOLDER           # real templates -> FOLDER/renderings.json

The templates are those in crates/text/tests/templates, the conversations in cases.json (goldens hold the whole text) and
matrix.json (every template with every conversation and every set of options; goldens hold a hash for
each of the sets, in order of their names). With --real, every
*.jinja in the folder is rendered over the matrix in the same way, for the test that looks there; nothing of that is committed.
Needs transformers 5.
"""

import argparse
import datetime
import json
import pathlib

import jinja2
import transformers
from jinja2.ext import loopcontrols
from jinja2.sandbox import SandboxedEnvironment
from transformers.utils import chat_template_utils

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests" / "fixtures" / "tokenizer" / "templates.json"
TEMPLATES = ROOT / "crates" / "text" / "tests" / "templates"
# What the clock of the tests shows.
NOW = datetime.datetime(2024, 2, 29, 12, 34, 56, tzinfo=datetime.timezone.utc)


class Refusal(Exception):
    """The template called raise_exception."""


def refuse(message):
    raise Refusal(message)


def compile_template(source, lists_change=False):
    if not lists_change:
        return chat_template_utils._compile_jinja_template(source)
    # transformers' environment, except that its sandbox forbids to change lists.
    environment = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **({"ensure_ascii": False} | options))
    return environment.from_string(source)


def render(template, messages, options, tools):
    variables = {
        "tools": None, "documents": None, "bos_token": "<s>", "eos_token": "</s>", "raise_exception": refuse,
        "strftime_now": NOW.strftime, "add_generation_prompt": options.get("add_generation_prompt", False),
    }
    variables |= {key: options[key] for key in ("tools", "documents") if key in options}
    if variables["tools"] == "shown":
        variables["tools"] = tools
    return template.render(messages=messages, **(variables | options.get("variables", {})))


def outcome(template, messages, options, tools):
    """The text, or {"refused": why}, or None where Python itself gives up."""
    try:
        return render(template, messages, options, tools)
    except Refusal as refusal:
        return {"refused": str(refusal)}
    except (TypeError, ValueError, KeyError, AttributeError, jinja2.exceptions.TemplateError):
        return None


def fnv(text):
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    return f"{state:016x}"


def matrix(spec, sources):
    rows = {}
    for name, source in sources.items():
        template = compile_template(source, spec["templates"].get(name, {}).get("lists_change", False))
        for conversation, messages in spec["conversations"].items():
            row = []
            for options in sorted(spec["options"]):
                result = outcome(template, messages, spec["options"][options], spec["tools"])
                row.append(fnv(result) if isinstance(result, str) else result)
            rows[f"{name}/{conversation}"] = row
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--show", nargs=3)
    parser.add_argument("--real", type=pathlib.Path)
    arguments = parser.parse_args()
    spec = json.loads((TEMPLATES / "matrix.json").read_text())
    origin = f"tools/goldens/template_goldens.py, transformers {transformers.__version__}, jinja2 {jinja2.__version__}"
    if arguments.show:
        name, conversation, options = arguments.show
        path = TEMPLATES / name if (TEMPLATES / name).exists() else pathlib.Path(name)
        template = compile_template(path.read_text(), spec["templates"].get(name, {}).get("lists_change", False))
        print(render(template, spec["conversations"][conversation], spec["options"][options], spec["tools"]), end="")
        return
    if arguments.real:
        sources = {}
        for path in sorted(arguments.real.glob("*.jinja")):
            try:
                compile_template(path.read_text())
                sources[path.name] = path.read_text()
            except jinja2.exceptions.TemplateSyntaxError as error:
                print(f"{path.name}: not a template for Jinja2: {error}")
        value, out = {"origin": origin, "matrix": matrix(spec, sources)}, arguments.real / "renderings.json"
    else:
        rendered = []
        for case in json.loads((TEMPLATES / "cases.json").read_text()):
            template = compile_template((TEMPLATES / case["template"]).read_text())
            rendered.append({"name": case["name"], "text": render(template, case["messages"], case, None)})
        sources = {name: (TEMPLATES / name).read_text() for name in spec["templates"]}
        value, out = {"origin": origin, "rendered": rendered, "matrix": matrix(spec, sources)}, OUT
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n"
    out.write_text(text)
    print(f"{out}: {len(text)} bytes")


if __name__ == "__main__":
    main()
