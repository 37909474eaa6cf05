# SPDX-License-Identifier: Apache-2.0
"""The privileged side: what starts, watches and ends taps; no byte of the network."""
