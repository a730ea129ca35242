//go:build !unix

package sqlite

import "io/fs"

// links is not known.
func links(fs.FileInfo) uint64 { return 0 }
