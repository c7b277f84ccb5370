"""The checks behind the commands: parity over grids, planted faults, conformance, metamorphic relations."""
