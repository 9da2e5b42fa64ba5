# SPDX-License-Identifier: Apache-2.0
"""The builder that reads parquet files under their literal names.

`datasets` replaces the functions that open files in the module of a builder by its own, to which `::` in a name is a
sign; so the builder stands alone here and opens files through pyarrow.
"""

from collections.abc import Iterator
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.builder import Key
from datasets.table import table_cast

_BATCH_ROWS = 256  # a batch of large pictures lies in memory at once


class LiteralParquet(datasets.ArrowBasedBuilder):
    """Parquet files as rows, in their order; what the columns are is given."""

    VERSION = datasets.Version("1.0.0")

    def _info(self) -> Any:
        return datasets.DatasetInfo()

    def _split_generators(self, dl_manager: Any) -> list[Any]:
        files = list(self.config.data_files["rows"])
        return [datasets.SplitGenerator(name="rows", gen_kwargs={"files": files})]

    def _generate_tables(self, files: list[str]) -> Iterator[tuple[Any, Any]]:
        schema = self.info.features.arrow_schema
        for place, file in enumerate(files):
            with pq.ParquetFile(file) as opened:
                for number, batch in enumerate(opened.iter_batches(_BATCH_ROWS)):
                    table = pa.Table.from_batches([batch])
                    decoded = table.cast(plain(table.schema)).replace_schema_metadata(None)
                    yield Key(place, number), table_cast(decoded, schema)


def plain(schema: Any) -> Any:
    """The schema with the values of a categorical column in place of its codes, and no views of texts or bytes."""
    return pa.schema([f.with_type(_plain_type(f.type)) for f in schema], metadata=schema.metadata)


def _plain_type(kind: Any) -> Any:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind
