"""JSON Schema files of the formats that leave this package, for readers in other languages.

They are written from the classes that read the formats: `python -m edvit_hf.manifest.schemas` rewrites them.
"""

import json
from pathlib import Path

from edvit_hf.manifest import Manifest
from edvit_hf.manifest.placement import PlacementFile
from edvit_hf.strict import json_schema

FOLDER = Path(__file__).parent


def schemas() -> dict[str, str]:
    """File name -> JSON text of every schema."""
    manifest = json_schema(
        Manifest, title="edvit_hf manifest", description="An exported ensemble: identity, sub-models, files, figures."
    )
    placement = json_schema(
        PlacementFile, title="edvit_hf placement", description="Which device of a fleet loads which file."
    )
    found = {"manifest.schema.json": manifest, "placement.schema.json": placement}
    return {name: json.dumps(schema, indent=2) + "\n" for name, schema in found.items()}


def write_schemas(folder: Path = FOLDER) -> None:
    """Write the files."""
    for name, text in schemas().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_schemas()
