"""What goes wrong while a run trains, seen in its metrics and said in words."""
