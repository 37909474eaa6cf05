# SPDX-License-Identifier: Apache-2.0
"""Fuzzing of what reads the network's bytes: targets, seeds, and inputs that once went wrong (`inputs/TARGET/`)."""
