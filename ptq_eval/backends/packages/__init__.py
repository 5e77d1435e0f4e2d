"""The backends that come with ptq-eval, one file each; reached through their entry points."""
