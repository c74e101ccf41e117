"""Links between workers: real slow ones, and the virtual clock that prices them."""
