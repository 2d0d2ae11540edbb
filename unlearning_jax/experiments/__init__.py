"""What the launch scripts share: models and edits, tables, cells, studies."""
