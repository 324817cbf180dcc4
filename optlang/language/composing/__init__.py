"""Rules made of pieces -> plain rules: transforms, pipelines, `use` and `inner` are written out."""
