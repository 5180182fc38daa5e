%% A NATS message as a PUBLISH packet of MQTT 5, and back.
%%
%% The reserved user property `Nats-Reply-To' is a reply subject for which there is no topic. The
%% reserved property `Nats-Header-Block' is a code and the percent-encoded header block. It is there
%% if the other user properties do not hold all of the block, and is repeated if one string cannot
%% hold it. The code is made with the secret of this gateway, so the gateway knows that it has
%% written the block itself.
-module(nats_gateway_mqtt_mapping).

-export([without_bad_topics/1]).
-export([publish/4]).
-export([with_properties/2]).
-export([fits/3]).
-export([max_size/1]).
-export([delivery/3]).
-export([facts/1]).

-export_type([strings/0]).

-include("nats_gateway.hrl").
-include("nats_gateway_mqtt.hrl").

%% Header names and values that the codec would refuse are rare, and looking for them costs as much
%% as everything else. With `trust' the codec alone checks them.
-type strings() :: trust | check.

-define(REPLY_TO, <<"Nats-Reply-To">>).
-define(HEADER_BLOCK, <<"Nats-Header-Block">>).
%% Base64 of 15 bytes.
-define(CODE_SIZE, 20).
-define(HEADER_BLOCK_FORM, <<
    "^NATS/1\\.0(?: [0-9]{3}(?: [^\\r\\n]*+)?)?\\r\\n(?:[!-9;-~]++:[^\\r\\n]*+\\r\\n)*+\\r\\n$"
>>).

%% The same limits as for a block that is built of user properties (headers.rs).
-define(MAX_FOREIGN_BLOCK, 65536).
-define(MAX_FOREIGN_HEADERS, 1000).

%% More than a packet needs besides its payload and headers.
-define(REST_OF_PACKET, 262144).
-define(MAX_STRING, 65535).

%% -------------------------------------------------------------------------------------------
%% To MQTT

%% The codec checks every topic and refuses a batch that has a bad one. This removes the topics that
%% it would refuse. A message without a topic goes to nobody, and a reply subject without one
%% travels as it is.
-spec without_bad_topics(#pub{}) -> #pub{}.
without_bad_topics(Pub = #pub{topic = Topic, reply_topic = ReplyTopic}) ->
    Pub#pub{topic = valid(Topic), reply_topic = valid(ReplyTopic)}.

valid(undefined) ->
    undefined;
valid(invalid) ->
    invalid;
valid(Topic) ->
    {Name, Correlation} = nats_gateway_host:topic(Topic),
    Valid =
        nats_gateway_mqtt_nif:is_topic(Name) andalso
            (Correlation =:= undefined orelse byte_size(Correlation) =< ?MAX_STRING),
    case Valid of
        true -> Topic;
        false -> invalid
    end.

%% The message must have a topic. With QoS 1 it gets its packet identifier when it is sent.
-spec publish(#pub{}, 0 | 1, strings(), Secret :: binary()) -> #publish{}.
publish(Pub, QoS, Strings, Secret) ->
    #pub{
        topic = Topic,
        reply_to = ReplyTo,
        reply_topic = ReplyTopic,
        headers = Block,
        payload = Payload
    } = Pub,
    {Name, OwnCorrelation} = nats_gateway_host:topic(Topic),
    {Correlation, ResponseTopic, Replies} = reply(OwnCorrelation, ReplyTo, ReplyTopic),
    {Properties, ContentType} = headers(Block, Replies, Strings, Secret),
    #publish{
        topic = Name,
        payload = Payload,
        qos = QoS,
        response_topic = ResponseTopic,
        correlation_data = Correlation,
        content_type = ContentType,
        user_properties = Properties
    }.

%% Sets what the headers of the message have asked for. `publish/4' has taken care of the rest.
-spec with_properties(#properties{}, #publish{}) -> #publish{}.
with_properties(Properties, Packet = #publish{qos = QoS}) ->
    #properties{retain = Retain, qos = Asked, expiry = Expiry, payload_format = Format} = Properties,
    Packet#publish{
        qos =
            case Asked of
                undefined -> QoS;
                _ -> Asked
            end,
        retain =
            case {Expiry, Format} of
                {undefined, undefined} -> Retain;
                _ -> {Retain, Expiry, Format}
            end
    }.

%% A message has only one Correlation Data. That of an answer has precedence.
reply(Correlation, undefined, _) ->
    {Correlation, undefined, []};
reply(undefined, _, {ResponseTopic, ReplyCorrelation}) ->
    {ReplyCorrelation, ResponseTopic, []};
reply(Correlation, _, ResponseTopic) when is_binary(ResponseTopic) ->
    {Correlation, ResponseTopic, []};
reply(Correlation, ReplyTo, _) ->
    {Correlation, undefined, reply_subject(ReplyTo)}.

%% A subject that is not an MQTT string cannot be carried at all.
reply_subject(ReplyTo) ->
    case nats_gateway_mqtt_nif:is_string(ReplyTo) of
        true -> [{?REPLY_TO, ReplyTo}];
        false -> []
    end.

headers(undefined, Replies, _, _) ->
    {Replies, undefined};
headers(Block, Replies, Strings, Secret) ->
    {Pairs, ContentType, Exact} = nats_gateway_nif:header_properties(Block),
    {NPairs, NContentType} =
        case Strings of
            trust -> {Pairs, ContentType};
            check -> {[{string(N), string(Value)} || {N, Value} <- Pairs], string(ContentType)}
        end,
    Reserved =
        lists:keymember(?REPLY_TO, 1, NPairs) orelse lists:keymember(?HEADER_BLOCK, 1, NPairs),
    if
        Reserved ->
            %% The client's own headers with these names would be taken for ours.
            Others = [Pair || Pair = {Name, _} <- NPairs, not is_reserved(Name)],
            {Replies ++ block(Block, Secret) ++ Others, NContentType};
        Exact, NPairs =:= Pairs ->
            {Replies ++ NPairs, NContentType};
        true ->
            {Replies ++ block(Block, Secret) ++ NPairs, NContentType}
    end.

%% MQTT clients get a changed text if the original is not an MQTT string. The block has the
%% original.
string(undefined) ->
    undefined;
string(Text) ->
    case nats_gateway_mqtt_nif:is_string(Text) of
        true -> Text;
        false -> cut(nats_gateway_mqtt_nif:quote(Text))
    end.

cut(<<Text:?MAX_STRING/binary, _/binary>>) -> Text;
cut(Text) -> Text.

%% The code tells this gateway that it has written the block itself.
block(Block, Secret) ->
    Code = base64:encode(code(Block, Secret)),
    block_pairs(<<Code:?CODE_SIZE/binary, (nats_gateway_mqtt_nif:quote(Block))/binary>>).

code(Block, Secret) -> crypto:macN(hmac, sha256, Secret, Block, 15).

block_pairs(<<Part:?MAX_STRING/binary, Rest/binary>>) when Rest =/= <<>> ->
    [{?HEADER_BLOCK, Part} | block_pairs(Rest)];
block_pairs(Part) ->
    [{?HEADER_BLOCK, Part}].

is_reserved(Name) -> Name =:= ?REPLY_TO orelse Name =:= ?HEADER_BLOCK.

%% The largest packet that a message with so many bytes of headers and payload can become. As
%% properties, headers take up to four times as much: percent-encoded, and once more in readable
%% form.
-spec max_size(MaxPayload :: non_neg_integer()) -> pos_integer().
max_size(MaxPayload) -> 4 * MaxPayload + ?REST_OF_PACKET.

%% Whether the packet is at most `Max' bytes long. A header block takes up to four times its size:
%% each byte may be percent-encoded, and is in the block and in a property of its own.
-spec fits(#publish{}, Block :: undefined | binary(), Max :: pos_integer()) -> boolean().
fits(#publish{payload = Payload}, Block, Max) when
    Block =:= undefined, byte_size(Payload) + ?REST_OF_PACKET =< Max
->
    true;
fits(#publish{payload = Payload}, Block, Max) when
    byte_size(Payload) + 4 * byte_size(Block) + ?REST_OF_PACKET =< Max
->
    true;
fits(Packet, _, Max) ->
    #publish{
        topic = Name,
        payload = Payload,
        response_topic = ResponseTopic,
        correlation_data = Correlation,
        content_type = ContentType,
        user_properties = Properties
    } = Packet,
    Texts = [Name, Payload, ResponseTopic, Correlation, ContentType],
    Bytes = lists:sum([byte_size(Text) || Text <- Texts, Text =/= undefined]),
    %% Lengths and identifiers: 5 bytes for each user property, and fewer than 64 for everything
    %% else.
    Pairs = lists:sum([5 + byte_size(Key) + byte_size(Value) || {Key, Value} <- Properties]),
    Bytes + Pairs + 64 =< Max orelse
        (Bytes + Pairs =< Max andalso
            iolist_size(nats_gateway_mqtt_nif:encode([numbered(Packet)])) =< Max).

numbered(Packet = #publish{qos = 0}) -> Packet;
numbered(Packet) -> Packet#publish{packet_id = 1}.

%% -------------------------------------------------------------------------------------------
%% From MQTT

%% MQTT does not say which messages are copies of the same one.
-spec delivery(#publish{}, nats_gateway_host:key(), Secret :: binary()) -> #delivery{}.
delivery(Packet = #publish{topic = Topic, payload = Payload}, Key, Secret) ->
    {Reply, Headers} = message(Packet, Secret),
    #delivery{key = Key, topic = Topic, reply = Reply, headers = Headers, payload = Payload}.

%% The properties of a message, as the broker has sent it to this client.
-spec facts(#publish{}) -> nats_gateway_publish_properties:facts().
facts(#publish{qos = QoS, retain = {Retain, Expiry, Format}}) ->
    #{retain => Retain, qos => QoS, expiry => Expiry, payload_format => Format};
facts(#publish{qos = QoS, retain = Retain}) ->
    #{retain => Retain, qos => QoS, expiry => undefined, payload_format => undefined}.

message(Packet = #publish{user_properties = []}, _) ->
    #publish{
        response_topic = ResponseTopic, correlation_data = Correlation, content_type = ContentType
    } = Packet,
    {reply(ResponseTopic, Correlation), properties([], ContentType)};
message(Packet, Secret) ->
    #publish{
        response_topic = ResponseTopic,
        correlation_data = Correlation,
        content_type = ContentType,
        user_properties = Properties
    } = Packet,
    case reserved(Properties) of
        {undefined, [], Pairs} ->
            {reply(ResponseTopic, Correlation), properties(Pairs, ContentType)};
        {Subject, Blocks, Pairs} ->
            Reply =
                case Subject of
                    undefined -> reply(ResponseTopic, Correlation);
                    _ -> {subject, Subject}
                end,
            case header_block(Blocks, Secret) of
                undefined -> {Reply, properties(Pairs, ContentType)};
                Block -> {Reply, Block}
            end
    end.

reply(undefined, _) -> undefined;
reply(ResponseTopic, Correlation) -> {topic, ResponseTopic, Correlation}.

properties([], undefined) -> undefined;
properties(Pairs, ContentType) -> {properties, Pairs, ContentType}.

reserved([]) ->
    {undefined, [], []};
reserved([{?REPLY_TO, Value} | Properties]) ->
    {Subject, Blocks, Pairs} = reserved(Properties),
    %% Any MQTT client may have written the value, and it goes into a control line.
    case Value =/= <<>> andalso binary:match(Value, [<<" ">>, <<"\t">>, <<"\r">>, <<"\n">>]) of
        nomatch -> {Value, Blocks, Pairs};
        _ -> {Subject, Blocks, Pairs}
    end;
reserved([{?HEADER_BLOCK, Value} | Properties]) ->
    {Subject, Blocks, Pairs} = reserved(Properties),
    {Subject, [Value | Blocks], Pairs};
reserved([Pair | Properties]) ->
    {Subject, Blocks, Pairs} = reserved(Properties),
    {Subject, Blocks, [Pair | Pairs]}.

%% NATS clients get a block of our own unchanged. Another block may come from a second gateway or
%% from any MQTT client, so it must be valid. Otherwise async-nats drops its connection, and drops
%% it again when the message comes again (docs/protocol.md section 6).
header_block([], _) ->
    undefined;
header_block(Parts, Secret) ->
    case iolist_to_binary(Parts) of
        <<Code:?CODE_SIZE/binary, Quoted/binary>> ->
            Block = nats_gateway_mqtt_nif:unquote(Quoted),
            case Code =:= base64:encode(code(Block, Secret)) orelse is_header_block(Block) of
                true -> Block;
                false -> undefined
            end;
        _ ->
            undefined
    end.

is_header_block(Block) when byte_size(Block) > ?MAX_FOREIGN_BLOCK -> false;
is_header_block(Block) ->
    %% The first line and the empty line come on top of the headers.
    length(binary:matches(Block, <<"\r\n">>)) =< ?MAX_FOREIGN_HEADERS + 2 andalso
        is_binary(unicode:characters_to_binary(Block)) andalso
        re:run(Block, ?HEADER_BLOCK_FORM, [{capture, none}, dollar_endonly]) =:= match.
