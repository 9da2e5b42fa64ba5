# SPDX-License-Identifier: Apache-2.0
"""The model card of an ensemble, with its figures, and the zoo of measured ensembles.

Comes in: results.json, manifest.json and what the owner says. Goes out: README.md and assets/, or a table of several
ensembles. The recipe's last stage, `edvit card` and `edvit zoo` call it; no torch.

```python
from edvit_hf.card import CardData, render_card, zoo_of_folder, zoo_table_markdown

card = render_card(CardData.from_folder("space_app/model/digits", repo_id="owner/digits"))
print(card[:300])  # `write_card` writes it into the folder, with its figures
print(zoo_table_markdown(zoo_of_folder("space_app/model")))
```
"""

from typing import TYPE_CHECKING

from edvit_hf.errors import lazy

if TYPE_CHECKING:
    from edvit_hf.card.data import CardData, CardRun, CardText
    from edvit_hf.card.figures import draw_figures
    from edvit_hf.card.render import render_card, template_path, write_card
    from edvit_hf.card.zoo import ZOO_NOTE, ZooRow, zoo_cells, zoo_of_folder, zoo_of_hub, zoo_row, zoo_table_markdown

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "data": ("CardData", "CardRun", "CardText"),
        "figures": ("draw_figures",),
        "render": ("render_card", "template_path", "write_card"),
        "zoo": ("ZOO_NOTE", "ZooRow", "zoo_cells", "zoo_of_folder", "zoo_of_hub", "zoo_row", "zoo_table_markdown"),
    },
)
