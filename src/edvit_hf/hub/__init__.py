# SPDX-License-Identifier: Apache-2.0
"""The Hub: publish an ensemble in one commit, fetch one device's share of it.

Comes in: an ensemble's folder, or a repository's id with what a device needs. Goes out: one commit, or a verified
folder. Anybody may call it: pulling needs neither torch nor transformers, and from a local folder only the base
install.

```python
import tempfile
from pathlib import Path
from edvit_hf.errors import HubError
from edvit_hf.hub import pull
from edvit_hf.hub.source import is_hub_id

source = "space_app/model/digits"  # or the id of a Hub repository: `owner/name`
print(is_hub_id(source), is_hub_id("owner/digits"))
with tempfile.TemporaryDirectory() as folder:
    kitchen = pull(source, sub_models=[2], precision="fp32", output=Path(folder) / "kitchen")  # whole, or not at all
    for needed in kitchen.selection.files:
        print(needed.file, needed.bytes)
    print(kitchen.bytes_on_disk, kitchen.content_hash[:12])  # the hash is that of the whole ensemble
    again = pull(source, sub_models=[2], precision="fp32", output=kitchen.folder)
    print(again.unchanged, again.bytes_fetched)  # what is there and right is not fetched twice
    hall = pull(source, sub_models=[0, 4], profile="x86-avx2", fusion=True, output=Path(folder) / "hall")
    print({index: file.name for index, file in hall.selection.variants.items()}, hall.selection.fusion.file)
    try:
        pull(source, sub_models=[7], precision="fp32", output=Path(folder) / "cellar")
    except HubError as error:  # says which sub-models there are
        print(error)
# The other way: push(prepare_push(folder, "owner/digits"), dry_run=True) checks all that a push would send.
```
"""

from typing import TYPE_CHECKING

from edvit_hf.errors import lazy

if TYPE_CHECKING:
    from edvit_hf.hub.pulling import Pulled, pull
    from edvit_hf.hub.pushing import Push, Pushed, prepare_push, push
    from edvit_hf.hub.selection import Selection, select_by_placement, select_by_profile

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "pulling": ("Pulled", "pull"),
        "pushing": ("Push", "Pushed", "prepare_push", "push"),
        "selection": ("Selection", "select_by_placement", "select_by_profile"),
    },
)
