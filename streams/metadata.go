package streams

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A schema's metadata is a flatbuffer (Arrow format, Message.fbs and Schema.fbs). Arrow's reader believes the lengths
// it finds there and allocates by them, up to hundreds of gigabytes for a damaged one, which no recover catches: they
// are checked before it sees them. What merely points out of the buffer makes it panic, which is caught.

// fieldsMax bounds the fields of a schema, nested ones too.
const fieldsMax = 4096

// Slots of the tables' fields, numbers of the unions' members, and the bytes of a vector's element, an offset.
const (
	slotMessageHeaderType = 1
	slotMessageHeader     = 2
	slotMessageMetadata   = 4
	slotSchemaFields      = 1
	slotSchemaMetadata    = 2
	slotFieldTypeKind     = 2
	slotFieldChildren     = 5
	slotFieldMetadata     = 6

	headerIsSchema = 1
	typeIsUnion    = 14
	offsetBytes    = 4
)

// checkSchemaMetadata walks the flatbuffer of a schema message.
func checkSchemaMetadata(meta []byte) (err error) {
	defer recovered(&err)
	b := flat(meta)
	msg := b.follow(0)
	if at := b.slot(msg, slotMessageHeaderType); at == 0 || b[at] != headerIsSchema {
		return errors.New("the message is no schema")
	}
	if _, _, err := b.vector(msg, slotMessageMetadata); err != nil {
		return err
	}
	at := b.slot(msg, slotMessageHeader)
	if at == 0 {
		return errors.New("the schema is missing")
	}
	schema := b.follow(at)
	if _, _, err := b.vector(schema, slotSchemaMetadata); err != nil {
		return err
	}
	left := fieldsMax
	return b.checkFields(schema, slotSchemaFields, 0, &left)
}

// flat is a flatbuffer; reading out of it panics.
type flat []byte

func (b flat) u32(at int) int { return int(binary.LittleEndian.Uint32(b[at:])) }

// follow goes where the offset at at points.
func (b flat) follow(at int) int { return at + b.u32(at) }

// slot finds a table's field by its number; 0 when it is not there.
func (b flat) slot(table, n int) int {
	vtable := table - int(int32(binary.LittleEndian.Uint32(b[table:])))
	if size := int(binary.LittleEndian.Uint16(b[vtable:])); 4+2*n+2 > size {
		return 0
	}
	offset := int(binary.LittleEndian.Uint16(b[vtable+4+2*n:]))
	if offset == 0 {
		return 0
	}
	return table + offset
}

// vector finds a table's vector; its elements are offsets.
func (b flat) vector(table, n int) (first, count int, err error) {
	at := b.slot(table, n)
	if at == 0 {
		return 0, 0, nil
	}
	at = b.follow(at)
	count = b.u32(at)
	if first = at + 4; count > (len(b)-first)/offsetBytes {
		return 0, 0, fmt.Errorf("schema metadata with %d elements in %d bytes", count, len(b))
	}
	return first, count, nil
}

func (b flat) checkFields(table, n, depth int, left *int) error {
	first, count, err := b.vector(table, n)
	if err != nil {
		return err
	}
	if *left -= count; *left < 0 || depth > nestingMax {
		return fmt.Errorf("schema with more than %d fields, or nested deeper than %d", fieldsMax, nestingMax)
	}
	for i := range count {
		field := b.follow(first + offsetBytes*i)
		if at := b.slot(field, slotFieldTypeKind); at != 0 && b[at] == typeIsUnion {
			return errors.New("schema: unions do not travel on streams")
		}
		if _, _, err := b.vector(field, slotFieldMetadata); err != nil {
			return err
		}
		if err := b.checkFields(field, slotFieldChildren, depth+1, left); err != nil {
			return err
		}
	}
	return nil
}
