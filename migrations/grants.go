package migrations

import (
	_ "embed"
	"regexp"
	"strings"
)

//go:embed postgres/roles.sql
var roles string

// Grant is a right that the worker needs on a table or a sequence of a Postgres database.
type Grant struct{ Privilege, Object string }

// PostgresGrants are the rights that roles.sql grants.
func PostgresGrants() []Grant {
	var grants []Grant
	for _, g := range regexp.MustCompile(`(?m)^GRANT ([A-Z, ]+) ON (?:SEQUENCE )?(\w+) TO`).FindAllStringSubmatch(roles, -1) {
		for privilege := range strings.SplitSeq(g[1], ", ") {
			grants = append(grants, Grant{Privilege: privilege, Object: g[2]})
		}
	}
	return grants
}
