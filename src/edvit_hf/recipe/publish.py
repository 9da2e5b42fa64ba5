"""The card stage: ensemble + exports + results + card in one folder, ready to push."""

from edvit_hf.model_card import CardData, write_card
from edvit_hf.recipe.schema import recipe_values
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import link_tree, read_json, whole_folder, write_json

PLACEMENT_SCHEMA_VERSION = 1


def write_publishable(trip: Trip) -> None:
    """Write `ensemble/`: everything of the export stage, `results.json`, `placement.json` and the card."""
    recipe = trip.recipe
    with whole_folder(trip.folders["card"] / "ensemble") as partial:
        link_tree(trip.folders["export"] / "ensemble", partial)
        results = read_json(trip.folders["evaluate"] / "results.json")
        write_json(partial / "results.json", results)
        write_json(
            partial / "placement.json",
            {
                "schema_version": PLACEMENT_SCHEMA_VERSION,
                "fleet": trip.plan.fleet,
                "devices": _placed([(s.device, s.index) for s in trip.plan.sub_models]),
            },
        )
        card = recipe.card
        text = {
            "model_name": card.title, "repo_id": card.repo_id, "licence": card.license, "language": card.language,
            "dataset_id": recipe.dataset.path if "/" in recipe.dataset.path else None,
            "intended_use": card.intended_use,
        }  # fmt: skip
        data = CardData.from_run(
            results, read_json(partial / "manifest.json"), recipe_values(recipe),
            **{key: value for key, value in text.items() if value is not None},
        )  # fmt: skip
        write_card(partial, data)


def _placed(pairs: list[tuple[str, int]]) -> dict[str, list[int]]:
    devices: dict[str, list[int]] = {}
    for device, index in pairs:
        devices.setdefault(device, []).append(index)
    return devices
