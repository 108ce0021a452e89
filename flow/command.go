package flow

import "github.com/apache/arrow/go/v15/arrow"

// CommandSchema is one step of a command a row, as gateways write them down: what was asked of a device, by whom, and what
// became of it. A row is written when the step stands in the table of commands.
var CommandSchema = arrow.NewSchema([]arrow.Field{
	{Name: ColTime, Type: InstantType},                                  // of the step, by the gateway that saw it
	{Name: ColHome, Type: KeyType},                                      //
	{Name: ColDevice, Type: KeyType},                                    //
	{Name: "id", Type: arrow.BinaryTypes.String},                        // of the command, unique for the device
	{Name: "name", Type: KeyType},                                       // What is asked
	{Name: "state", Type: KeyType},                                      // accepted, sent, delivered, executed, failed, expired
	{Name: "by", Type: KeyType},                                         // the user that asked
	{Name: "gateway", Type: KeyType},                                    // the start of the gateway that saw the step
	{Name: "deadline", Type: InstantType},                               //
	{Name: "detail", Type: arrow.BinaryTypes.String, Nullable: true},    // What the hub said of it
	{Name: "arguments", Type: arrow.BinaryTypes.String, Nullable: true}, // JSON; only of the first step
	{Name: "executed", Type: InstantType, Nullable: true},               // by the hub's clock
}, nil)
