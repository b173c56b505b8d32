"""Results → tables, trees and JSON, one file for each command. The only package that prints."""
