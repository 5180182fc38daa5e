%% The TLS of a listener: its certificates, which are checked and loaded here, and the options of a
%% handshake.
%%
%% This module loads the files itself, not through OTP. So a start can name a file that is wrong,
%% and a file that has changed on disk is used from the next handshake on. If the files cannot be
%% used (for example, the new certificate is written, but its key is not), the listener keeps what
%% it had.
-module(nats_gateway_tls).

-export([load/1]).
-export([plan/1]).
-export([publish/1]).
-export([forget/1]).
-export([options/1]).
-export([server_info/2]).
-export([cipher_suite/1]).
-export([format_problem/1]).

-include_lib("kernel/include/logger.hrl").
-include_lib("kernel/include/file.hrl").
-include_lib("public_key/include/public_key.hrl").

-export_type([settings/0, plan/0, mode/0, problem/0]).

%% See docs/protocol.md section 9.
-type mode() ::
    %% INFO is sent in clear, then the client starts TLS
    upgrade
    %% INFO comes inside TLS
    | handshake_first
    %% one or the other, depending on what the client does first
    | auto.

-type settings() :: #{
    listener := atom() | binary(),
    %% every handshake finds the certificates under this key
    key := term(),
    mode := mode(),
    %% whether clients may go on in clear after INFO
    allow_non_tls := boolean(),
    %% for `auto': the time that a client has for its first byte
    handshake_first_wait := pos_integer(),
    handshake_timeout := pos_integer(),
    verify := verify_none | verify_peer,
    certfile := file:filename_all(),
    keyfile := file:filename_all(),
    cacertfile => file:filename_all(),
    password => fun(() -> iodata()),
    %% all options that are not in files
    options := [ssl:tls_server_option()]
}.

%% The part of the settings that a connection holds.
-type plan() :: #{
    key := term(),
    mode := mode(),
    allow_non_tls := boolean(),
    handshake_first_wait := pos_integer(),
    handshake_timeout := pos_integer(),
    verify := verify_none | verify_peer
}.

%% The setting, its file, and what is wrong with the file.
-type problem() :: {certfile | keyfile | cacertfile | password, file:filename_all(), binary()}.

-type stamp() ::
    {Mtime :: integer(), Size :: integer(), Inode :: integer()}
    | {Mtime :: integer(), Size :: integer(), Inode :: integer(), Content :: term()}
    | {error, file:posix()}.

%% The clock of a file system differs from ours by less than this.
-define(SETTLED_S, 2).

-record(loaded, {
    settings :: settings(),
    stamps :: [stamp()],
    options :: [ssl:tls_server_option()],
    %% why the options are not what the files hold
    problem = none :: none | problem()
}).

-spec plan(settings()) -> plan().
plan(Settings) ->
    maps:with(
        [key, mode, allow_non_tls, handshake_first_wait, handshake_timeout, verify], Settings
    ).

%% -------------------------------------------------------------------------------------------
%% Certificates of a listener

%% Loads the files for the next handshakes.
-spec publish(settings()) -> ok | {error, problem()}.
publish(Settings = #{key := Key}) ->
    %% The stamps are taken first: so a change during the load is noticed.
    Stamps = stamps(Settings),
    case load(Settings) of
        {ok, Options} ->
            store(Key, #loaded{settings = Settings, stamps = Stamps, options = Options});
        {error, Problem} ->
            {error, Problem}
    end.

store(Key, Loaded) -> persistent_term:put({?MODULE, Key}, Loaded).

-spec forget(Key :: term()) -> ok.
forget(Key) ->
    _ = persistent_term:erase({?MODULE, Key}),
    ok.

%% The options of the next handshake.
-spec options(Key :: term()) -> [ssl:tls_server_option()].
options(Key) ->
    Loaded = #loaded{settings = Settings, options = Options} = persistent_term:get({?MODULE, Key}),
    case stamps(Settings) of
        Stamps when Stamps =:= Loaded#loaded.stamps -> Options;
        Stamps -> reload(Key, Loaded#loaded{stamps = Stamps})
    end.

reload(Key, Old = #loaded{settings = Settings, stamps = Stamps, options = Options}) ->
    {New, Log} =
        case load(Settings) of
            {ok, Options} ->
                {Old#loaded{problem = none}, none};
            {ok, NOptions} ->
                Report = #{msg => certificates_reloaded},
                {Old#loaded{options = NOptions, problem = none}, {notice, Report}};
            {error, Problem} when Problem =:= Old#loaded.problem ->
                {Old, none};
            {error, Problem = {Setting, File, Text}} ->
                Report = #{setting => Setting, file => File, reason => Text},
                {Old#loaded{problem = Problem}, {warning, Report#{msg => certificates_not_reloaded}}}
        end,
    case persistent_term:get({?MODULE, Key}, none) of
        #loaded{settings = Settings, stamps = Before} when Before =/= Stamps ->
            store(Key, New),
            log(Log, Settings);
        _ ->
            %% Another handshake was faster, or the listener has got other settings meanwhile.
            ok
    end,
    New#loaded.options.

log(none, _) -> ok;
log({Level, Report}, #{listener := Listener}) -> ?LOG(Level, Report#{listener => Listener}).

stamps(Settings) -> [stamp(File) || {_, File} <- maps:to_list(files(Settings))].

files(Settings) -> maps:with([certfile, keyfile, cacertfile], Settings).

%% A file that replaces another has another inode. A file that is written in place may keep its size
%% and, in whole seconds, its time: so the content of a file that has just changed counts as well.
stamp(File) ->
    case file:read_file_info(File, [raw, {time, posix}]) of
        {ok, #file_info{mtime = Mtime, size = Size, inode = Inode}} ->
            case erlang:system_time(second) - Mtime of
                Age when Age > ?SETTLED_S; Age < -?SETTLED_S -> {Mtime, Size, Inode};
                _ -> {Mtime, Size, Inode, content(File)}
            end;
        {error, Reason} ->
            {error, Reason}
    end.

content(File) ->
    case file:read_file(File) of
        {ok, Bytes} -> erlang:md5(Bytes);
        {error, Reason} -> Reason
    end.

%% -------------------------------------------------------------------------------------------
%% Loading

-spec load(settings()) -> {ok, [ssl:tls_server_option()]} | {error, problem()}.
load(Settings = #{certfile := CertFile, keyfile := KeyFile, options := Options}) ->
    try
        Chain = [Leaf | _] = certificates(certfile, CertFile),
        {Key, Encoded} = private_key(KeyFile, Settings),
        belongs(Key, Leaf) orelse
            problem(keyfile, KeyFile, [<<"is not the key of the certificate in ">>, CertFile]),
        Authorities =
            case Settings of
                #{cacertfile := CaFile} -> [{cacerts, certificates(cacertfile, CaFile)}];
                #{} -> []
            end,
        {ok, [{cert, Chain}, {key, Encoded} | Authorities] ++ Options}
    catch
        throw:{problem, Problem} -> {error, Problem}
    end.

certificates(Setting, File) ->
    Ders = [Der || {'Certificate', Der, not_encrypted} <- entries(Setting, File)],
    Ders =/= [] orelse problem(Setting, File, <<"holds no certificate in PEM form">>),
    lists:foreach(
        fun(Der) ->
            try
                public_key:pkix_decode_cert(Der, otp)
            catch
                error:_ -> problem(Setting, File, <<"holds a certificate that cannot be decoded">>)
            end
        end,
        Ders
    ),
    Ders.

%% Returns the key twice: as needed for a signature of our own, and in the form that the handshake
%% takes.
private_key(File, Settings) ->
    case [Entry || Entry <- entries(keyfile, File), is_private_key(Entry)] of
        [{Type, Der, not_encrypted} = Entry | _] ->
            {open(Entry, not_encrypted, File), {Type, Der}};
        [Entry | _] ->
            Password =
                case Settings of
                    #{password := Fun} ->
                        unicode:characters_to_list(Fun());
                    #{} ->
                        problem(password, File, <<"is needed: it is encrypted">>)
                end,
            Key = open(Entry, Password, File),
            {Key, {'PrivateKeyInfo', public_key:der_encode('PrivateKeyInfo', Key)}};
        [] ->
            problem(keyfile, File, <<"holds no private key in PEM form">>)
    end.

is_private_key({Type, _, _}) ->
    lists:member(Type, ['RSAPrivateKey', 'DSAPrivateKey', 'ECPrivateKey', 'PrivateKeyInfo']).

open(Entry, not_encrypted, File) ->
    try
        public_key:pem_entry_decode(Entry)
    catch
        error:_ -> problem(keyfile, File, <<"holds a key that cannot be decoded">>)
    end;
open(Entry, Password, File) ->
    try
        public_key:pem_entry_decode(Entry, Password)
    catch
        error:_ -> problem(password, File, <<"cannot decrypt it">>)
    end.

entries(Setting, <<>>) ->
    problem(Setting, <<>>, <<"is not set">>);
entries(Setting, File) ->
    case file:read_file(File) of
        {ok, Pem} ->
            try
                public_key:pem_decode(Pem)
            catch
                error:_ -> problem(Setting, File, <<"is not a PEM file">>)
            end;
        {error, Reason} ->
            problem(Setting, File, file:format_error(Reason))
    end.

%% They belong together if the certificate verifies what the key signs.
belongs(Key, CertificateDer) ->
    #'OTPCertificate'{tbsCertificate = #'OTPTBSCertificate'{subjectPublicKeyInfo = Info}} =
        public_key:pkix_decode_cert(CertificateDer, otp),
    #'OTPSubjectPublicKeyInfo'{
        algorithm = #'PublicKeyAlgorithm'{algorithm = Algorithm, parameters = Parameters},
        subjectPublicKey = Public
    } = Info,
    PublicKey =
        case Public of
            #'ECPoint'{} when Algorithm =:= ?'id-Ed25519'; Algorithm =:= ?'id-Ed448' ->
                {Public, {namedCurve, Algorithm}};
            #'ECPoint'{} ->
                {Public, Parameters};
            _ ->
                Public
        end,
    Text = <<"whose key is this">>,
    try
        {Digest, Signature} = sign(Text, Key),
        public_key:verify(Text, Digest, Signature, PublicKey)
    catch
        %% The key and the certificate are of different kinds.
        error:_ -> false
    end.

sign(Text, Key = #'ECPrivateKey'{parameters = {namedCurve, Curve}}) when
    Curve =:= ?'id-Ed25519'; Curve =:= ?'id-Ed448'
->
    {none, public_key:sign(Text, none, Key)};
sign(Text, {Key, _Parameters}) ->
    %% This is an RSA key that is only for PSS.
    sign(Text, Key);
sign(Text, Key) ->
    {sha256, public_key:sign(Text, sha256, Key)}.

-spec problem(atom(), file:filename_all(), iodata()) -> no_return().
problem(Setting, File, Text) ->
    throw({problem, {Setting, File, unicode:characters_to_binary(Text)}}).

%% -------------------------------------------------------------------------------------------

%% The fields of INFO, as in nats-server. `Secured' means that INFO is sent inside TLS.
-spec server_info(plan(), Secured :: boolean()) -> #{atom() => true}.
server_info(#{allow_non_tls := AllowNonTls, verify := Verify}, Secured) ->
    maps:from_list(
        [{tls_required, true} || Secured orelse not AllowNonTls] ++
            [{tls_available, true} || AllowNonTls] ++
            [{tls_verify, true} || Verify =:= verify_peer]
    ).

%% Finds a cipher suite by its name in the TLS registry or in OpenSSL.
-spec cipher_suite(binary()) -> {ok, ssl:erl_cipher_suite()} | error.
cipher_suite(Name) ->
    try ssl:str_to_suite(binary_to_list(Name)) of
        Suite when is_map(Suite) -> {ok, Suite};
        {error, _} -> error
    catch
        error:_ -> error
    end.

%% Describes a problem in one line, for the operator who wrote the settings.
-spec format_problem(problem()) -> iodata().
format_problem({Setting, <<>>, Text}) -> [atom_to_binary(Setting), <<" ">>, Text];
format_problem({Setting, File, Text}) -> [atom_to_binary(Setting), <<": ">>, File, <<": ">>, Text].
