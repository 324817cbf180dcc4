"""Program -> source -> callable."""
