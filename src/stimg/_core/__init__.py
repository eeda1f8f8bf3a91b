"""Floor 0: what every other floor stands on. Imports nothing from stimg but itself, and neither torch nor scvi-tools."""
