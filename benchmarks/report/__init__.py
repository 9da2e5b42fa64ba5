# SPDX-License-Identifier: Apache-2.0
"""The report: results files come in, benchmarks/REPORT.md, docs/results.md and the tables on speed go out.

`python benchmarks/report/write.py` writes all of them; nothing else calls it.
"""
