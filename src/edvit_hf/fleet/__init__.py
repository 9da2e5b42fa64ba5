# SPDX-License-Identifier: Apache-2.0
"""Many machines: what runs on each device, and what starts, joins and examines a fleet of them.

Comes in: a device's share of an ensemble, addresses, tokens and a placement. Goes out: a process that answers for its
sub-models, or a report on the fleet. The commands of `cli` call it; the coordinator's side are the engines of
`runtime.engines`.
"""
