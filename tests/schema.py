"""Gives documents to a validator of JSON Schema, and tells where it thinks of them otherwise than the worker.

schema.py TABLE: a JSON file with a list of [name of the schema, whether the worker takes it, text of the document].
"""

import json
import pathlib
import sys

from jsonschema import Draft202012Validator

schemas = {}
for path in pathlib.Path("docs/schema").glob("*.json"):
    schema = json.loads(path.read_text())
    Draft202012Validator.check_schema(schema)
    schemas[path.stem] = Draft202012Validator(schema)

wrong = 0
for name, taken, text in json.load(open(sys.argv[1])):
    if schemas[name].is_valid(json.loads(text)) != taken:
        wrong += 1
        print(f"{name}: the worker {'takes' if taken else 'rejects'} {text}")
sys.exit(wrong > 0)
