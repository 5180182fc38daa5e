%% The buckets of NATS's key/value store: which there are, and where their keys are in MQTT.
%%
%% A bucket is a tree of topics. The key `x.y' of a bucket with the prefix `b/' is the retained
%% message of the topic `b/x/y'. The mountpoint comes before the prefix.
-module(nats_gateway_kv_bucket).

-export([file_schema/0]).
-export([page_schema/0]).
-export([of_file/1]).
-export([of_page/1]).
-export([new/3]).
-export([names/1]).
-export([name/1]).
-export([stream/1]).
-export([prefix/1]).
-export([of_stream/3]).
-export([of_subject/3]).
-export([key/2]).
-export([topic/2]).
-export([filter/2]).
-export([subject_topic/2]).
-export([inbox/2]).
-export([key_of_topic/2]).

-export_type([buckets/0, bucket/0]).

-import(nats_gateway_schema, [invalid/2]).

%% The prefix of each bucket. `off': there is no key/value store.
-type buckets() :: off | #{Name :: binary() => Prefix :: binary()}.

-record(bucket, {
    name :: binary(),
    prefix :: binary(),
    mountpoint :: binary()
}).

-opaque bucket() :: #bucket{}.

%% -------------------------------------------------------------------------------------------
%% Settings

-spec file_schema() -> nats_gateway_schema:schema().
file_schema() ->
    #{enable => {boolean, false}, buckets => {{list, fun entry/2}, []}}.

%% The dashboard's form has an empty text where somebody cleared the field.
-spec page_schema() -> nats_gateway_schema:schema().
page_schema() ->
    #{
        kv_enable => {boolean, false},
        kv_buckets =>
            {
                fun(Values, Path) ->
                    nats_gateway_schema:value({list, fun entry/2}, not_blank(Values), Path)
                end,
                []
            }
    }.

not_blank(Values) when is_list(Values) -> [Value || Value <- Values, Value =/= <<>>];
not_blank(Other) -> Other.

%% To be called inside of `nats_gateway_schema:valid/1'.
-spec of_file(#{enable := boolean(), buckets := [{binary(), binary()}]}) -> buckets().
of_file(#{enable := Enable, buckets := Entries}) ->
    buckets(Enable, Entries, [<<"buckets">>, <<"kv">>]).

-spec of_page(map()) -> {ok, buckets()} | {error, Text :: binary()}.
of_page(#{kv_enable := Enable, kv_buckets := Entries}) ->
    nats_gateway_schema:valid(fun() -> buckets(Enable, Entries, [<<"kv_buckets">>]) end).

buckets(Enable, Entries, Path) ->
    Buckets = maps:from_list(Entries),
    _ = map_size(Buckets) =:= length(Entries) orelse invalid(Path, <<"must not name a bucket twice">>),
    case Enable of
        true when Entries =:= [] -> invalid(Path, <<"must name at least one bucket">>);
        true -> Buckets;
        false -> off
    end.

%% `name', or `name=prefix'.
entry(Value, Path) when is_binary(Value) ->
    case binary:split(Value, <<"=">>) of
        [Name] -> {bucket_name(Name, Path), <<Name/binary, $/>>};
        [Name, Prefix] -> {bucket_name(Name, Path), topic_prefix(Prefix, Path)}
    end;
entry(_, Path) ->
    no_entry(Path).

%% Clients take no other names.
bucket_name(Name, Path) ->
    case re:run(Name, "^[-_a-zA-Z0-9]+$", [dollar_endonly, {capture, none}]) of
        match -> Name;
        nomatch -> no_entry(Path)
    end.

topic_prefix(Prefix, Path) ->
    Levels = binary:split(string:trim(Prefix, trailing, "/"), <<"/">>, [global]),
    First = hd(Levels),
    IsTopic =
        lists:all(fun(Level) -> Level =/= <<>> end, Levels) andalso
            binary:match(Prefix, [<<"+">>, <<"#">>, <<0>>, <<"$">>]) =:= nomatch andalso
            is_list(unicode:characters_to_list(Prefix)),
    case IsTopic andalso First =/= <<>> of
        true -> iolist_to_binary([lists:join($/, Levels), $/]);
        false -> no_entry(Path)
    end.

-spec no_entry(nats_gateway_schema:path()) -> no_return().
no_entry(Path) ->
    invalid(
        Path,
        <<
            "must be the name of a bucket (letters, digits, - and _), or name=topic/prefix ",
            "without +, # and $"
        >>
    ).

%% -------------------------------------------------------------------------------------------
%% Names

-spec new(Name :: binary(), Prefix :: binary(), Mountpoint :: binary()) -> bucket().
new(Name, Prefix, Mountpoint) -> #bucket{name = Name, prefix = Prefix, mountpoint = Mountpoint}.

-spec names(buckets()) -> [binary()].
names(off) -> [];
names(Buckets) -> lists:sort(maps:keys(Buckets)).

-spec name(bucket()) -> binary().
name(#bucket{name = Name}) -> Name.

-spec stream(bucket()) -> binary().
stream(#bucket{name = Name}) -> <<"KV_", Name/binary>>.

-spec prefix(bucket()) -> binary().
prefix(#bucket{prefix = Prefix}) -> Prefix.

-spec of_stream(Stream :: binary(), Mountpoint :: binary(), buckets()) -> {ok, bucket()} | error.
of_stream(<<"KV_", Name/binary>>, Mountpoint, Buckets) ->
    case Buckets of
        #{Name := Prefix} -> {ok, new(Name, Prefix, Mountpoint)};
        _ -> error
    end;
of_stream(_, _, _) ->
    error.

%% The bucket and the key, or the filter of keys, of a subject.
-spec of_subject(Subject :: binary(), Mountpoint :: binary(), buckets()) ->
    {ok, bucket(), Key :: binary()} | error.
of_subject(<<"$KV.", Rest/binary>>, Mountpoint, Buckets) ->
    case binary:split(Rest, <<".">>) of
        [Name, Key] when Key =/= <<>>, is_map_key(Name, Buckets) ->
            {ok, new(Name, maps:get(Name, Buckets), Mountpoint), Key};
        _ ->
            error
    end;
of_subject(_, _, _) ->
    error.

%% The key, or the filter of keys, of a subject of this bucket.
-spec key(Subject :: binary(), bucket()) -> {ok, binary()} | error.
key(Subject, #bucket{name = Name}) ->
    Size = byte_size(Name),
    case Subject of
        <<"$KV.", Name:Size/binary, $., Key/binary>> when Key =/= <<>> -> {ok, Key};
        _ -> error
    end.

%% The topic of a key. There are keys that no topic can hold.
-spec topic(Key :: binary(), bucket()) -> {ok, binary()} | invalid.
topic(Key, Bucket) ->
    case
        nats_gateway_nif:valid_publish_subject(Key) andalso
            nats_gateway_nif:topic(Key, place(Bucket))
    of
        Topic when is_binary(Topic) -> {ok, Topic};
        _ -> invalid
    end.

%% The topic filter of a filter of keys. It may match the parent of the topics as well.
-spec filter(KeyFilter :: binary(), bucket()) -> {ok, binary()} | invalid.
filter(KeyFilter, Bucket) ->
    case nats_gateway_nif:filter(KeyFilter, place(Bucket)) of
        Filter when is_binary(Filter) -> {ok, Filter};
        _ -> invalid
    end.

place(#bucket{prefix = Prefix, mountpoint = Mountpoint}) -> <<Mountpoint/binary, Prefix/binary>>.

%% The topic that becomes the subject of a key in a frame. `Topic' is in the bucket.
-spec subject_topic(Topic :: binary(), bucket()) -> binary().
subject_topic(Topic, Bucket = #bucket{name = Name, mountpoint = Mountpoint}) ->
    Key = binary:part(Topic, byte_size(Topic), byte_size(place(Bucket)) - byte_size(Topic)),
    <<Mountpoint/binary, "$KV/", Name/binary, $/, Key/binary>>.

%% The topic of a subject outside of the bucket, for the same client.
-spec inbox(Subject :: binary(), bucket()) -> {ok, binary()} | invalid.
inbox(Subject, #bucket{mountpoint = Mountpoint}) ->
    case
        nats_gateway_nif:valid_publish_subject(Subject) andalso
            nats_gateway_nif:topic(Subject, Mountpoint)
    of
        Topic when is_binary(Topic) -> {ok, Topic};
        _ -> invalid
    end.

%% The key of a topic, if the topic is in the bucket.
-spec key_of_topic(Topic :: binary(), bucket()) -> {ok, binary()} | error.
key_of_topic(Topic, Bucket) ->
    Place = place(Bucket),
    Size = byte_size(Place),
    case Topic of
        <<Place:Size/binary, _, _/binary>> -> {ok, nats_gateway_nif:subject(Topic, Place)};
        _ -> error
    end.
