"""The backbones: :mod:`.mvit` and :mod:`.vit`, their schedules, the trunk and the block."""
