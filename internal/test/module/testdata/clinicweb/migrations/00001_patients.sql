-- +goose Up
CREATE TABLE patients (
    id uuid PRIMARY KEY,
    name text UNIQUE,
    welcomed bool
);

-- +goose Down
DROP TABLE patients;
