"""What every part needs: settings, mistakes, Arrow bytes. Imports no other part; every part may import it."""
