# SPDX-License-Identifier: Apache-2.0
"""The stages of the trip, one file for each (or for two that share their work).

A stage is a function of the `Trip`: it reads what earlier stages left, calls the library, and writes its own folder.
`recipe.running` calls them in order; it may be interrupted anywhere, for what a stage has finished is found again, and
what is half-written is ignored.
"""
