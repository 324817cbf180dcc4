"""Rules made of pieces -> rules without: transforms, pipelines, `use`, `inner`, histories, `iterate`."""
