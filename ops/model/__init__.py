"""The freeze protocol as a Promela model, checked exhaustively by spin; README.md says what it covers."""
