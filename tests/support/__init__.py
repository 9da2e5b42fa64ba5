# SPDX-License-Identifier: Apache-2.0
"""What tests share: tiny models and ensembles, sample results, the loopback Hub, doubles."""
