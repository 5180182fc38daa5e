%% The answers to requests to the key/value store, in the form of a nats-server's JetStream.
-module(nats_gateway_kv_answer).

-export([encode/1]).
-export([denied/1]).
-export([value/3]).
-export([frame_headers/2]).
-export([control/2]).
-export([block/1]).
-export([deleted/1]).
-export([pairs/1]).

-export_type([answer/0, type/0, failure/0]).

-type bucket() :: nats_gateway_kv_bucket:bucket().

%% `io.nats.jetstream.api.v1.TYPE_response'. Reading directly and publishing have forms of their
%% own.
-type type() :: binary() | direct | {publish, Stream :: binary()}.

-type failure() ::
    bad_request
    | invalid_json
    | not_implemented
    | stream_not_found
    | consumer_not_found
    | message_not_found
    | other_configuration
    | other_stream
    | no_rollup
    | invalid_ttl
    | push_only
    | too_many_requests
    | too_many_consumers
    | {wrong_last, Revision :: non_neg_integer()}
    | {failed, Text :: binary()}
    | {denied, publish | subscribe, Subject :: binary()}
    | {not_allowed, stream_create | stream_delete | message_delete | purge}
    | {no_filter, Subject :: binary()}
    | {consumer_option, Name :: binary()}.

-type answer() ::
    no_responders
    | {error, type(), failure()}
    | {account_info, Streams :: non_neg_integer(), Consumers :: non_neg_integer()}
    | {stream_names, [binary()], Offset :: non_neg_integer()}
    | {stream_list, [stream()], Offset :: non_neg_integer()}
    | {stream_info, info | create | update, stream()}
    | {stored, bucket(), Revision :: pos_integer()}
    | {purged, non_neg_integer()}
    | {consumer, create | info, consumer()}
    | consumer_deleted
    | {consumer_names, [binary()]}
    | {consumer_list, [consumer()]}
    | {value, direct | message, bucket(), Key :: binary(), nats_gateway_kv_store:value()}.

-type stream() :: #{
    bucket := bucket(),
    where := nats_gateway_kv_store:where(),
    messages := non_neg_integer(),
    bytes := non_neg_integer(),
    first := {Revision :: non_neg_integer(), AtMs :: integer()},
    last := {Revision :: non_neg_integer(), AtMs :: integer()},
    consumers := non_neg_integer(),
    %% who answers
    leader := binary()
}.

-type consumer() :: #{
    bucket := bucket(),
    name := binary(),
    created := CreatedMs :: integer(),
    config := map(),
    delivered := {ConsumerSequence :: non_neg_integer(), Revision :: non_neg_integer()},
    pending := non_neg_integer(),
    bound := boolean(),
    leader := binary()
}.

%% What a nats-server tells of no value, and how many streams it lists at once.
-define(NEVER, <<"0001-01-01T00:00:00Z">>).
-define(STREAMS_AT_ONCE, 256).
-define(NAMES_AT_ONCE, 1024).

%% Headers and payload of the message that answers.
-spec encode(answer()) -> {nats_gateway_nif:headers(), Payload :: binary()}.
encode({error, direct, Failure}) ->
    {Code, _, Text} = failure(Failure),
    {status(direct_code(Code), direct_text(Failure, Text), []), <<>>};
encode({error, {publish, Stream}, Failure}) ->
    json(#{error => error_object(Failure), stream => Stream, seq => 0});
encode({error, Type, Failure}) ->
    response(Type, maps:merge(empty(Type), #{error => error_object(Failure)}));
encode({stored, Bucket, Revision}) ->
    json(#{stream => nats_gateway_kv_bucket:stream(Bucket), seq => Revision});
encode({account_info, Streams, Consumers}) ->
    response(<<"account_info">>, #{
        memory => 0,
        storage => 0,
        reserved_memory => 0,
        reserved_storage => 0,
        streams => Streams,
        consumers => Consumers,
        limits => #{
            max_memory => -1,
            max_storage => -1,
            max_streams => -1,
            max_consumers => -1,
            max_ack_pending => -1,
            memory_max_stream_bytes => -1,
            storage_max_stream_bytes => -1,
            max_bytes_required => false
        },
        api => #{total => 0, errors => 0}
    });
encode({stream_names, Names, Offset}) ->
    Page = lists:sublist(drop(Offset, Names), ?NAMES_AT_ONCE),
    response(<<"stream_names">>, #{
        total => length(Names),
        offset => Offset,
        limit => ?NAMES_AT_ONCE,
        %% a nats-server answers null
        streams => Page
    });
encode({stream_list, Streams, Offset}) ->
    Page = lists:sublist(drop(Offset, Streams), ?STREAMS_AT_ONCE),
    response(<<"stream_list">>, #{
        total => length(Streams),
        offset => Offset,
        limit => ?STREAMS_AT_ONCE,
        streams => [maps:remove(cluster, stream(Stream)) || Stream <- Page]
    });
encode({stream_info, info, Stream}) ->
    response(<<"stream_info">>, maps:merge(empty(<<"stream_info">>), stream(Stream)));
encode({stream_info, create, Stream}) ->
    response(<<"stream_create">>, (stream(Stream))#{did_create => true});
encode({stream_info, update, Stream}) ->
    response(<<"stream_update">>, stream(Stream));
encode({purged, Purged}) ->
    response(<<"stream_purge">>, #{success => true, purged => Purged});
encode({consumer, create, Consumer}) ->
    response(<<"consumer_create">>, consumer(Consumer));
encode({consumer, info, Consumer}) ->
    response(<<"consumer_info">>, consumer(Consumer));
encode(consumer_deleted) ->
    response(<<"consumer_delete">>, #{success => true});
encode({consumer_names, Names}) ->
    response(<<"consumer_names">>, page(#{consumers => Names}, length(Names)));
encode({consumer_list, Consumers}) ->
    Listed = [consumer(Consumer) || Consumer <- Consumers],
    response(<<"consumer_list">>, page(#{consumers => Listed}, length(Listed)));
encode({value, direct, Bucket, Key, Value}) ->
    value(Bucket, Key, Value);
encode({value, message, Bucket, Key, Value}) ->
    #{revision := Revision, at := At, headers := Headers, payload := Payload} = Value,
    Hdrs =
        case pairs(Headers) of
            [] -> #{};
            Pairs -> #{hdrs => base64:encode(block(Pairs))}
        end,
    Data = maps:from_list([{data, base64:encode(Payload)} || Payload =/= <<>>]),
    response(<<"stream_msg_get">>, #{
        message => maps:merge(maps:merge(Hdrs, Data), #{
            subject => subject(Bucket, Key), seq => Revision, time => rfc3339(At)
        })
    }).

drop(N, List) when N >= length(List) -> [];
drop(N, List) -> lists:nthtail(N, List).

page(Map, Total) -> Map#{total => Total, offset => 0, limit => ?NAMES_AT_ONCE}.

response(Type, Map) ->
    json(Map#{type => <<"io.nats.jetstream.api.v1.", Type/binary, "_response">>}).

json(Map) -> {undefined, nats_gateway_nif:json(Map)}.

%% Answers of these types have such fields even in an error.
empty(Type) when
    Type =:= <<"stream_info">>; Type =:= <<"stream_list">>; Type =:= <<"stream_names">>
->
    #{total => 0, offset => 0, limit => 0};
empty(Type) when Type =:= <<"stream_purge">>; Type =:= <<"stream_delete">> ->
    #{success => false};
empty(_) ->
    #{}.

%% The text in the form of the protocol.
-spec denied({publish | subscribe, Subject :: binary()}) -> failure().
denied({Kind, Subject}) -> {denied, Kind, Subject}.

error_object(Failure) ->
    {Code, ErrorCode, Text} = failure(Failure),
    #{code => Code, err_code => ErrorCode, description => Text}.

%% Codes and texts of a nats-server, as far as it has them. Others have the code of the kind of
%% failure whose text a nats-server fills in.
failure(bad_request) -> {400, 10003, <<"bad request">>};
failure(invalid_json) -> {400, 10025, <<"invalid JSON">>};
failure(not_implemented) -> {501, 10036, <<"not implemented">>};
failure(stream_not_found) -> {404, 10059, <<"stream not found">>};
failure(consumer_not_found) -> {404, 10014, <<"consumer not found">>};
failure(message_not_found) -> {404, 10037, <<"no message found">>};
failure(other_configuration) ->
    {400, 10058, <<"stream name already in use with a different configuration">>};
failure(other_stream) -> {400, 10060, <<"expected stream does not match">>};
failure(no_rollup) -> {400, 10111, <<"rollup not permitted">>};
failure(invalid_ttl) -> {400, 10165, <<"invalid per-message TTL">>};
failure(too_many_requests) -> {429, 10167, <<"too many requests">>};
failure(too_many_consumers) -> {400, 10026, <<"maximum consumers limit reached">>};
failure(push_only) ->
    {400, 10012, <<"this key/value store has only push consumers: deliver_subject must be set">>};
failure({wrong_last, Revision}) ->
    {400, 10071, <<"wrong last sequence: ", (integer_to_binary(Revision))/binary>>};
failure({failed, Text}) -> {503, 10077, Text};
failure({denied, publish, Subject}) ->
    {403, 10077, <<"not permitted to publish retained messages to ", Subject/binary>>};
failure({denied, subscribe, Subject}) ->
    {403, 10012, <<"not permitted to subscribe to ", Subject/binary>>};
failure({not_allowed, stream_create}) ->
    {403, 10052, <<"this is no bucket of the gateway's settings, and only these are there">>};
failure({not_allowed, stream_delete}) ->
    {403, 10050, <<"buckets of the gateway's settings cannot be removed">>};
failure({not_allowed, message_delete}) ->
    {403, 10057, <<"delete the key instead: messages have no numbers in this store">>};
failure({not_allowed, purge}) ->
    {403, 10110, <<"only one key can be purged at a time">>};
failure({no_filter, Subject}) ->
    {400, 10093, <<"no filter of keys of this bucket: ", Subject/binary>>};
failure({consumer_option, Name}) ->
    {400, 10012, <<"this key/value store does not have this for consumers: ", Name/binary>>}.

%% With 503 clients take it that nobody has the request.
direct_code(503) -> 500;
direct_code(Code) -> Code.

direct_text(message_not_found, _) -> <<"Message Not Found">>;
direct_text(bad_request, _) -> <<"Bad Request">>;
direct_text(_, Text) -> Text.

status(Code, Text, Pairs) ->
    Lines = [[Name, <<": ">>, Value, <<"\r\n">>] || {Name, Value} <- Pairs],
    iolist_to_binary([<<"NATS/1.0 ">>, integer_to_binary(Code), $\s, Text, <<"\r\n">>, Lines, <<"\r\n">>]).

%% -------------------------------------------------------------------------------------------
%% Streams and consumers

stream(#{bucket := Bucket, where := Where, leader := Leader} = Stream) ->
    #{messages := Messages, bytes := Bytes, first := First, last := Last} = Stream,
    {FirstRevision, FirstAt} = First,
    {LastRevision, LastAt} = Last,
    #{
        config => stream_config(Bucket, Where),
        created => rfc3339(started_ms()),
        state => #{
            messages => Messages,
            bytes => Bytes,
            first_seq => FirstRevision,
            first_ts => time(FirstRevision, FirstAt),
            last_seq => LastRevision,
            last_ts => time(LastRevision, LastAt),
            num_subjects => Messages,
            consumer_count => maps:get(consumers, Stream)
        },
        cluster => #{leader => Leader},
        ts => now_rfc3339()
    }.

time(0, _) -> ?NEVER;
time(_, At) -> rfc3339(At).

%% A stream that keeps the last message of each subject. The names are those of a nats-server.
stream_config(Bucket, Where) ->
    #{
        name => nats_gateway_kv_bucket:stream(Bucket),
        description => description(Bucket, Where),
        subjects => [subject(Bucket, <<">">>)],
        retention => limits,
        max_consumers => -1,
        max_msgs => -1,
        max_bytes => -1,
        max_age => 0,
        max_msgs_per_subject => 1,
        max_msg_size => -1,
        discard => new,
        storage => file,
        num_replicas => 1,
        duplicate_window => 120000000000,
        compression => none,
        allow_direct => true,
        mirror_direct => false,
        sealed => false,
        deny_delete => true,
        deny_purge => false,
        allow_rollup_hdrs => true,
        allow_msg_ttl => true,
        consumer_limits => #{}
    }.

description(Bucket, Where) ->
    Among =
        case Where of
            cluster -> <<"the NATS clients of the cluster">>;
            gateway -> <<"the NATS clients of this gateway">>
        end,
    <<
        "MQTT's retained messages below ",
        (nats_gateway_kv_bucket:prefix(Bucket))/binary,
        "; create and update are atomic among ",
        Among/binary
    >>.

consumer(#{bucket := Bucket, name := Name, created := Created, config := Config} = Consumer) ->
    #{delivered := {Sequence, Revision}, pending := Pending, bound := Bound} = Consumer,
    #{
        stream_name => nats_gateway_kv_bucket:stream(Bucket),
        name => Name,
        created => rfc3339(Created),
        config => maps:merge(#{<<"name">> => Name}, Config),
        delivered => #{consumer_seq => Sequence, stream_seq => Revision},
        ack_floor => #{consumer_seq => Sequence, stream_seq => Revision},
        num_ack_pending => 0,
        num_redelivered => 0,
        num_waiting => 0,
        num_pending => Pending,
        push_bound => Bound,
        cluster => #{leader => maps:get(leader, Consumer)},
        ts => now_rfc3339()
    }.

subject(Bucket, Key) -> <<"$KV.", (nats_gateway_kv_bucket:name(Bucket))/binary, $., Key/binary>>.

rfc3339(Ms) ->
    list_to_binary(calendar:system_time_to_rfc3339(Ms, [{unit, millisecond}, {offset, "Z"}])).

now_rfc3339() -> rfc3339(erlang:system_time(millisecond)).

%% When this node was started. It is all that is known of the age of a bucket.
started_ms() ->
    erlang:convert_time_unit(
        erlang:system_info(start_time) + erlang:time_offset(), native, millisecond
    ).

%% -------------------------------------------------------------------------------------------
%% Values

%% The answer to a direct get: the message itself, and what it is in headers.
-spec value(bucket(), Key :: binary(), nats_gateway_kv_store:value()) ->
    {nats_gateway_nif:headers(), binary()}.
value(Bucket, Key, #{revision := Revision, at := At, headers := Headers, payload := Payload}) ->
    More = [
        {<<"Nats-Stream">>, nats_gateway_kv_bucket:stream(Bucket)},
        {<<"Nats-Subject">>, subject(Bucket, Key)},
        {<<"Nats-Sequence">>, integer_to_binary(Revision)},
        {<<"Nats-Time-Stamp">>, rfc3339(At)}
    ],
    {with(Headers, More), Payload}.

%% The headers of a message that a consumer delivers.
-spec frame_headers(nats_gateway_nif:headers(), [{binary(), binary()}]) ->
    nats_gateway_nif:headers().
frame_headers(Headers, []) -> Headers;
frame_headers(Headers, More) -> with(Headers, More).

with(undefined, More) -> block(More);
with({properties, Pairs, ContentType}, More) -> {properties, Pairs ++ More, ContentType};
with(Block, More) when is_binary(Block) ->
    Size = byte_size(Block) - 2,
    case Block of
        <<Lines:Size/binary, "\r\n">> ->
            iolist_to_binary([Lines, [[Name, <<": ">>, Value, <<"\r\n">>] || {Name, Value} <- More], <<"\r\n">>]);
        _ ->
            block(pairs(Block) ++ More)
    end.

%% A heartbeat, or the request to say when everything up to here is read.
-spec control(heartbeat | flow_control, [{binary(), binary()}]) -> binary().
control(heartbeat, Pairs) -> status(100, <<"Idle Heartbeat">>, Pairs);
control(flow_control, Pairs) -> status(100, <<"FlowControl Request">>, Pairs).

-spec block([{binary(), binary()}]) -> binary().
block(Pairs) ->
    iolist_to_binary([
        <<"NATS/1.0\r\n">>,
        [[Name, <<": ">>, Value, <<"\r\n">>] || {Name, Value} <- Pairs],
        <<"\r\n">>
    ]).

%% The headers of a key that is gone: for clients, and for the message that deletes it.
-spec deleted(Operation :: binary()) -> binary().
deleted(<<"PURGE">>) -> block([{<<"KV-Operation">>, <<"PURGE">>}, {<<"Nats-Rollup">>, <<"sub">>}]);
deleted(Operation) -> block([{<<"KV-Operation">>, Operation}]).

-spec pairs(nats_gateway_nif:headers()) -> [{binary(), binary()}].
pairs(undefined) -> [];
pairs({_, Pairs, undefined}) -> Pairs;
pairs({_, Pairs, ContentType}) -> Pairs ++ [{<<"Content-Type">>, ContentType}];
pairs(Block) ->
    {Pairs, ContentType, _} = nats_gateway_nif:header_properties(Block),
    pairs({properties, Pairs, ContentType}).
